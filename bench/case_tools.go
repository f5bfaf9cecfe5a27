package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// toolDir is where the guest has a program of Debian's and its libraries.
const toolDir = "tools"

// Where the tree has the loader and libraries.
const (
	toolLoader    = "lib64/ld-linux-x86-64.so.2"
	toolLibraries = "usr/lib/x86_64-linux-gnu"
	moreLibraries = toolLibraries + "/ceph"
)

// tool is a program in an unpacked tree, with the libraries that it needs.
type tool struct{ tree, path string }

// tool finds a program in the asset of its name.
func (e *environment) tool(name string) tool {
	return tool{guesttest.Asset(e.host, name), "usr/bin/" + name}
}

func (t tool) at(path string) string { return filepath.Join(t.tree, path) }

// command runs the program on this host, with options of the loader.
func (t tool) command(loader []string, args ...string) *exec.Cmd {
	argv := append([]string{"--library-path", t.at(toolLibraries) + ":" + t.at(moreLibraries)}, loader...)
	return exec.Command(t.at(toolLoader), append(append(argv, t.at(t.path)), args...)...)
}

// pack puts the program, its libraries and their loader into an initramfs.
func (t tool) pack(a *archive) error {
	out, err := t.command([]string{"--list"}).Output()
	if err != nil {
		return fmt.Errorf("libraries of %s: %w", t.path, err)
	}
	a.directory("tmp")
	a.directory(toolDir)
	a.file(toolDir+"/ld.so", t.at(toolLoader))
	a.file(toolDir+"/"+filepath.Base(t.path), t.at(t.path))
	// glibc loads this one itself, to end a thread.
	const unwinder = "libgcc_s.so.1"
	a.file(toolDir+"/"+unwinder, t.at(toolLibraries+"/"+unwinder))
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) > 2 && f[1] == "=>" && f[0] != unwinder && !strings.Contains(f[0], "/") {
			a.file(toolDir+"/"+f[0], f[2])
		}
	}
	return nil
}

// fioSize is the disk's size.
const fioSize = 256 << 20

// fioCase is fio on a raw disk of one type.
func fioCase(name, diskType string, modules ...string) benchmark {
	return benchmark{
		name:  name,
		about: "fio with direct I/O on a raw " + diskType + " disk, on a software CPU; QEMU with aio=io_uring",
		prepare: func(e *environment) (*plan, error) {
			k := e.trixie()
			fio := e.tool("fio")
			initrd, err := e.toolInitrd(name, k, &fio, modules...)
			if err != nil {
				return nil, err
			}
			disk := filepath.Join(e.dir, name+".raw")
			if err := randomFile(disk, fioSize); err != nil {
				return nil, err
			}
			p := &plan{}
			for _, op := range []string{"randread", "randwrite"} {
				for _, depth := range []string{"1", "32", "4x32"} {
					p.metrics = append(p.metrics, metric{"fio-" + op + "-" + depth, "4 KiB/s", true})
				}
			}
			p.metrics = append(p.metrics, metric{"fio-read-1M", "MiB/s", true}, metric{"fio-write-1M", "MiB/s", true}, metric{"CPU time", "s", false})
			e.software(p, machine{kernel: k.Path, initrd: initrd, ram: 1024, disk: disk, diskType: diskType, append: "bench.jobs=fio"}, deviceLimit, nil)
			return p, nil
		},
	}
}

// iperfMetrics are what the guest's iperf3 says.
var iperfMetrics = []metric{{"iperf3-to-host", "Mbit/s", true}, {"iperf3-to-guest", "Mbit/s", true}, {"CPU time", "s", false}}

// iperfCase is iperf3 through user mode networks.
var iperfCase = benchmark{
	name:  "iperf3",
	about: "iperf3 both ways between guest and host: user mode network against QEMU's slirp, on a software CPU",
	prepare: func(e *environment) (*plan, error) {
		addr, err := hostAddress()
		if err != nil {
			return nil, err
		}
		return e.iperfPlan(addr, "bench.addr=10.0.2.15/24 bench.gw=10.0.2.2", machine{net: true})
	},
}

// Names and addresses of the TAP case. gvmspawn names a TAP device after the
// machine, and the machine after its directory.
const (
	tapName  = "vt-empty"
	tapHost  = "10.99.77.1"
	tapGuest = "10.99.77.15"
)

// iperfTAPCase is iperf3 through a TAP device, without vhost.
var iperfTAPCase = benchmark{
	name:  "iperf3-tap",
	about: "iperf3 both ways between guest and host through a TAP device, QEMU without vhost, on a software CPU; needs root",
	prepare: func(e *environment) (*plan, error) {
		if os.Geteuid() != 0 {
			return nil, errors.New("needs root")
		}
		for _, args := range [][]string{{"tuntap", "add", "dev", tapName, "mode", "tap"}, {"addr", "add", tapHost + "/24", "dev", tapName}, {"link", "set", tapName, "up"}} {
			if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
				return nil, fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
			}
			if args[0] == "tuntap" {
				e.onClose(func() { _ = exec.Command("ip", "link", "del", tapName).Run() })
			}
		}
		return e.iperfPlan(tapHost, "bench.addr="+tapGuest+"/24 bench.gw="+tapHost, machine{tap: tapName})
	},
}

// iperfPlan starts iperf3's server at an address of this host, and prepares
// machines whose guests are its clients.
func (e *environment) iperfPlan(addr, network string, m machine) (*plan, error) {
	k := e.trixie()
	iperf := e.tool("iperf3")
	initrd, err := e.toolInitrd("iperf3", k, &iperf, "virtio_net")
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp4", net.JoinHostPort(addr, "0"))
	if err != nil {
		return nil, err
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	if err := l.Close(); err != nil {
		return nil, err
	}
	server := iperf.command(nil, "-s", "-B", addr, "-p", port)
	if err := server.Start(); err != nil {
		return nil, err
	}
	e.onClose(func() { _ = server.Process.Kill(); _ = server.Wait() })
	p := &plan{metrics: iperfMetrics}
	m.kernel, m.initrd, m.ram = k.Path, initrd, 512
	m.append = fmt.Sprintf("bench.jobs=iperf3 %s bench.server=%s bench.port=%s", network, addr, port)
	e.software(p, m, deviceLimit, nil)
	return p, nil
}
