package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest/treesum"
)

// fileChecks are what the guest program checks of a file system.
var fileChecks = strings.Fields(`files-create files-owner files-xattr files-links files-rename files-unlinked files-tmpfile files-sparse
	files-fallocate files-mmap files-flock files-posixlock files-times files-nodes files-bigdir files-append files-copyrange
	files-setuid files-errors files-statfs`)

// TestBootDirectory boots the modular bookworm kernel from a directory, with
// the synthesised initrd, on a terminal: files in both directions, binds,
// identity, credentials, console size, vsock in both directions, and the
// guest's exit status.
func TestBootDirectory(t *testing.T) {
	kernel := softBoot(t, "kernel-bookworm")
	if os.Geteuid() != 0 {
		t.Skip("owners and devices need root")
	}
	dir := t.TempDir()
	tree := guestTree(t, `
for i in 1 2 3 4 5; do size=$(stty size 2>/dev/null); [ -n "$size" ] && break; sleep 0.2; done
is size "$size" "33 111"
for i in $(seq 50); do size=$(stty size 2>/dev/null); [ "$size" = "40 120" ] && break; sleep 0.2; done
is resize "$size" "40 120"
is uuid "$(cat /sys/class/dmi/id/product_uuid)" 01234567-89ab-cdef-0123-456789abcdef
is credential "$(tr '\0' '\n' </sys/firmware/dmi/entries/11-0/raw | grep -a -o 'credential.binary:fruit=.*' | cut -d = -f 2- | base64 -d)" apple
is fromhost "$(stat -c '%u %g %a %s' /fromhost)" "1000 1001 640 11"
is hostlinks "$(stat -c %h /fromhost) $(readlink /hostlink)" "2 fromhost"
for m in 0 1 2; do mkdir -p /mnt/$m; mount -t virtiofs mnt$m /mnt/$m; done
is bind "$(cat /mnt/0/file)" "bound"
echo changed >/mnt/0/file
echo bad >/mnt/1/file; is bind-ro "$? $(cat /mnt/1/file)" "1 fixed"
rm /mnt/1/file; is bind-ro-remove $? 1
is bind-file "$(ls /mnt/2) $(cat /mnt/2/one)" "one single"
echo bad >/mnt/2/one; is bind-file-ro "$?" 1
cat /mnt/2/../2/other 2>/dev/null; is bind-file-only $? 1
mkdir /work; guest files /work; sync; guest sum /work
guest notify READY=1 "STATUS=half way"
guest echo 1234
guest dial 2 7777 20
guest notify EXIT_STATUS=42
poweroff -f`)
	writeFile(t, filepath.Join(tree, "fromhost"), []byte("hello guest"), 0o640)
	writeFile(t, filepath.Join(dir, "rw/file"), []byte("bound"), 0o644)
	writeFile(t, filepath.Join(dir, "ro/file"), []byte("fixed"), 0o644)
	writeFile(t, filepath.Join(dir, "single/one"), []byte("single"), 0o644)
	writeFile(t, filepath.Join(dir, "single/other"), []byte("secret"), 0o644)
	for _, err := range []error{
		os.Chown(filepath.Join(tree, "fromhost"), 1000, 1001), os.Chmod(filepath.Join(tree, "fromhost"), 0o640),
		os.Link(filepath.Join(tree, "fromhost"), filepath.Join(tree, "again")), os.Symlink("fromhost", filepath.Join(tree, "hostlink")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	manager := listenNotify(t, filepath.Join(dir, "notify"))
	m := newMachine(t, dir, kernel, "-D", tree, "-M", "boot", "--uuid=01234567-89ab-cdef-0123-456789abcdef", "--set-credential=fruit:apple",
		"--bind="+filepath.Join(dir, "rw"), "--bind-ro="+filepath.Join(dir, "ro"), "--bind-ro="+filepath.Join(dir, "single/one"), "quiet")
	m.Env = append(m.Env, "NOTIFY_SOCKET="+filepath.Join(dir, "notify"))
	m.startPTY(111, 33)
	m.waitFor("CHECK size")
	m.resize(120, 40)
	m.waitFor("ECHO ready")
	for _, want := range []string{"READY=1", "STATUS=VM running: half way"} {
		if !strings.Contains(manager.String(), want) {
			t.Errorf("the manager was not told %q but %q", want, manager.String())
		}
	}
	echoOn(t, "unix", filepath.Join(dir, "run/boot/vsock_7777"))
	echoThroughMux(t, filepath.Join(dir, "run/boot/vsock"), 1234)
	if s := m.status(); s != 42 {
		t.Errorf("status %d, want 42", s)
	}
	m.check(append(fileChecks, "size", "uuid", "credential", "fromhost", "hostlinks", "bind", "bind-ro", "bind-ro-remove", "bind-file", "bind-file-ro", "bind-file-only", "echo", "dial", "notify", "resize")...)
	sameTree(t, m, filepath.Join(tree, "work"))
	hostSees(t, filepath.Join(tree, "work"))
	if b, err := os.ReadFile(filepath.Join(dir, "rw/file")); string(b) != "changed\n" {
		t.Errorf("the bound file has %q, %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "ro/file")); string(b) != "fixed" {
		t.Errorf("the file bound read-only has %q, %v", b, err)
	}
}

// sameTree compares the guest's last sum with the host's of the same directory.
func sameTree(t *testing.T, m *booted, dir string) {
	t.Helper()
	want, err := treesum.Sum(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := m.after("SUM "); got != want {
		t.Errorf("guest and host see different trees: %s and %s", got, want)
	}
}

// hostSees looks at what "guest files" leaves, for what a sum cannot tell.
func hostSees(t *testing.T, dir string) {
	t.Helper()
	var st, other unix.Stat_t
	stat := func(name string, st *unix.Stat_t) {
		if err := unix.Lstat(filepath.Join(dir, name), st); err != nil {
			t.Error(err)
		}
	}
	if stat("owned", &st); st.Uid != 1234 || st.Gid != 4321 || st.Mode != syscall.S_IFREG|0o600 {
		t.Errorf("owned: %d:%d %o", st.Uid, st.Gid, st.Mode)
	}
	b := make([]byte, 10)
	if n, err := unix.Getxattr(filepath.Join(dir, "owned"), "user.test", b); err != nil || string(b[:n]) != "value" {
		t.Errorf("attribute: %q, %v", b, err)
	}
	stat("first", &st)
	if stat("second", &other); st.Ino != other.Ino || st.Nlink != 2 {
		t.Error("first and second are not the same file")
	}
	if stat("sparse", &st); st.Size != 8<<20 || st.Blocks*512 > 1<<20 {
		t.Errorf("sparse: %d bytes in %d blocks", st.Size, st.Blocks)
	}
	if stat("whiteout", &st); st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
		t.Errorf("whiteout: mode %o, device %#x", st.Mode, st.Rdev)
	}
	if stat("times", &st); st.Mtim.Nano() != 1_700_000_000_987_654_321 {
		t.Errorf("times: %d", st.Mtim.Nano())
	}
	if to, _ := os.Readlink(filepath.Join(dir, "symlink")); to != "../first/../elsewhere" {
		t.Errorf("symlink to %q", to)
	}
}

// listenNotify is a service manager that collects what it is told.
func listenNotify(t *testing.T, path string) *output {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	all := &output{}
	go func() {
		b := make([]byte, 8192)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			fmt.Fprintf(all, "%s\n", b[:n])
		}
	}()
	return all
}

// echoThroughMux reaches the guest's echo service through the mux socket, more
// data than any buffer holds, and ends it.
func echoThroughMux(t *testing.T, path string, port int) {
	t.Helper()
	c := dialMux(t, path, port)
	defer c.Close()
	data := bytes.Repeat([]byte("vsock "), 100_000)
	go c.Write(data) //nolint:errcheck // seen below
	got := make([]byte, len(data))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, data) {
		t.Errorf("echo through the mux socket: %v", err)
	}
	q := dialMux(t, path, port)
	defer q.Close()
	_ = c.Close()
	if _, err := io.WriteString(q, "quit"); err != nil {
		t.Error(err)
	}
	_, _ = io.Copy(io.Discard, q)
}

func dialMux(t *testing.T, path string, port int) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(time.Minute)) //nolint:errcheck // then the test's own limit counts
	fmt.Fprintf(c, "CONNECT %d\n", port)
	var line []byte
	for b := make([]byte, 1); !bytes.HasSuffix(line, []byte("\n")); line = append(line, b[0]) {
		if _, err := c.Read(b); err != nil {
			t.Fatalf("the mux socket says %q, %v", line, err)
		}
	}
	if !bytes.HasPrefix(line, []byte("OK ")) {
		t.Fatalf("the mux socket says %q", line)
	}
	return c
}
