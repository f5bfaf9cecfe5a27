package main

import (
	"crypto/sha256"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// TestLongApt runs "apt-get update" and "apt-get download" in a Debian tree, through the
// user-mode network, against a web server on the host.
func TestLongApt(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("boots a Debian tree: set GVMSPAWN_LONG=1")
	}
	kernel, tree := softBoot(t, "kernel-trixie"), guesttest.Asset(t, "tree-trixie")
	dir := t.TempDir()
	archive := filepath.Join(dir, "archive")
	name := aptArchive(t, archive)
	l, err := net.Listen("tcp", net.JoinHostPort(hostAddress(t), "0"))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.FileServer(http.Dir(archive))}
	go server.Serve(l) //nolint:errcheck // ends with the test
	t.Cleanup(func() { server.Close() })

	copied := filepath.Join(dir, "tree")
	if err := guesttest.CopyTree(tree, copied); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(copied, "etc/apt/sources.list"), fmt.Appendf(nil, "deb [trusted=yes] http://%s/ ./\n", l.Addr()), 0o644)
	writeFile(t, filepath.Join(copied, "init-apt"), []byte(`#!/bin/sh
export PATH=/usr/bin:/usr/sbin DEBIAN_FRONTEND=noninteractive
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmpfs /tmp
ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2
cd /tmp
apt-get -o APT::Sandbox::User=root update && echo CHECK update ok
apt-get -o APT::Sandbox::User=root download `+name+` && [ "$(sha256sum `+name+`_*.deb | cut -d" " -f1)" = "$(cat /sum)" ] && echo CHECK download ok
sync; echo o >/proc/sysrq-trigger; sleep 100
`), 0o755)
	deb, err := filepath.Glob(filepath.Join(archive, "*.deb"))
	if err != nil || len(deb) != 1 {
		t.Fatal(err, deb)
	}
	data, err := os.ReadFile(deb[0])
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(copied, "sum"), fmt.Appendf(nil, "%x\n", sha256.Sum256(data)), 0o644)
	m := newMachine(t, dir, kernel, "-D", copied, "--cpus=2", "--vsock=no", "--network-user-mode", "init=/init-apt", "quiet", "sysrq_always_enabled")
	m.start()
	if s := m.status(); s != 0 {
		t.Errorf("status %d", s)
	}
	m.check("update", "download")
}

// aptArchive makes a Debian archive with one package of 8 MiB and returns its name.
func aptArchive(t *testing.T, dir string) string {
	t.Helper()
	const name = "gvmspawn-test"
	root := filepath.Join(t.TempDir(), name)
	writeFile(t, filepath.Join(root, "DEBIAN/control"), []byte("Package: "+name+"\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: a test\n"), 0o644)
	big := make([]byte, 8<<20)
	for i := range big {
		big[i] = byte(i * i >> 7)
	}
	writeFile(t, filepath.Join(root, "usr/share/big"), big, 0o644)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	deb := filepath.Join(dir, name+"_1_all.deb")
	toolOutput(t, guesttest.Tool(t, "dpkg-deb"), "-Znone", "--root-owner-group", "-b", root, deb)
	control := strings.TrimSuffix(string(toolOutput(t, "dpkg-deb", "-f", deb)), "\n")
	info, err := os.ReadFile(deb)
	if err != nil {
		t.Fatal(err)
	}
	packages := fmt.Sprintf("%s\nFilename: ./%s_1_all.deb\nSize: %d\nSHA256: %x\n", control, name, len(info), sha256.Sum256(info))
	writeFile(t, filepath.Join(dir, "Packages"), []byte(packages), 0o644)
	writeFile(t, filepath.Join(dir, "Release"), fmt.Appendf(nil, "Suite: test\nArchitectures: all amd64\nSHA256:\n %x %d Packages\n", sha256.Sum256([]byte(packages)), len(packages)), 0o644)
	return name
}
