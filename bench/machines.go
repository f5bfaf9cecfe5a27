package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// guestReady is what the guest program prints first.
const guestReady = "BENCH-READY"

// machine is a guest that every VMM can run.
type machine struct {
	kernel, initrd string
	share          string // directory, shared as "root"
	disk           string // raw image
	diskType       string // of disk: virtio-blk if empty, virtio-scsi, nvme
	net            bool
	tap            string // name of a TAP device, instead of net
	vsock          bool
	append         string // kernel arguments
	ram            int    // MiB
}

// kernelLine is common to all. The TSC's frequency is given because QEMU's TCG
// fails to calibrate it against the PIT on a busy host, and then hangs. Tests of
// cryptography would go on beside the jobs: gvmspawn's guests have none.
func (m machine) kernelLine() string {
	return "console=ttyS0 quiet panic=-1 mitigations=off cryptomgr.notests " + m.append
}

const qemuLine = " reboot=t tsc_early_khz=2500000"

// gvmspawnArgs is gvmspawn's command line. accel is --kvm='s value.
func (e *environment) gvmspawnArgs(m machine, accel string, more ...string) []string {
	share := m.share
	if share == "" {
		share = e.emptyDir()
	}
	a := []string{e.gvmspawn, "-q", "--kvm=" + accel, "-D", share, "--linux=" + m.kernel, fmt.Sprintf("--ram=%dM", m.ram),
		"--console=read-only", "--console-transport=serial", "--register=no", "--tpm=no", "--vsock=" + yesNo(m.vsock)}
	if m.initrd != "" {
		a = append(a, "--initrd="+m.initrd)
	}
	if m.disk != "" {
		typ := m.diskType
		if typ == "" {
			typ = "virtio-blk"
		}
		a = append(a, "--extra-drive=raw:"+typ+":"+m.disk)
	}
	if m.net {
		a = append(a, "--network-user-mode")
	}
	if m.tap != "" {
		a = append(a, "--network-tap")
	}
	return append(append(a, more...), m.kernelLine())
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// emptyDir is what gvmspawn shares when the case needs no files.
func (e *environment) emptyDir() string {
	dir := filepath.Join(e.dir, "empty")
	_ = os.MkdirAll(dir, 0o755)
	return dir
}

// qemuArgs is QEMU's command line for its leanest machine. accel is "tcg" or
// "kvm"; socket is virtiofsd's.
func qemuArgs(qemu string, m machine, accel, socket string) []string {
	board, cpu := "microvm", "max"
	if m.share != "" || m.disk != "" || m.net || m.tap != "" {
		board = "microvm,pcie=on"
	}
	if accel == "kvm" {
		cpu = "host"
	}
	line := m.kernelLine() + qemuLine
	a := []string{qemu, "-accel", accel, "-cpu", cpu, "-m", fmt.Sprint(m.ram), "-nodefaults", "-no-user-config", "-nographic",
		"-serial", "stdio", "-no-reboot", "-kernel", m.kernel}
	if m.initrd != "" {
		a = append(a, "-initrd", m.initrd)
	}
	if m.share != "" {
		board += ",memory-backend=ram"
		a = append(a, "-object", fmt.Sprintf("memory-backend-memfd,id=ram,size=%dM,share=on", m.ram),
			"-chardev", "socket,id=fs,path="+socket, "-device", "vhost-user-fs-pci,chardev=fs,tag=root")
	}
	if m.disk != "" {
		a = append(a, "-drive", "if=none,id=disk,format=raw,aio=io_uring,file="+m.disk)
		switch m.diskType {
		case "virtio-scsi":
			a = append(a, "-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=disk")
		case "nvme":
			a = append(a, "-device", "nvme,drive=disk,serial=bench")
		default:
			a = append(a, "-device", "virtio-blk-pci,drive=disk")
		}
	}
	if m.net {
		a = append(a, "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net")
	}
	if m.tap != "" {
		a = append(a, "-netdev", "tap,id=net,vhost=off,script=no,downscript=no,ifname="+m.tap, "-device", "virtio-net-pci,netdev=net")
	}
	return append(a, "-M", board, "-append", line)
}

// virtiofsd is QEMU 7.2's file server, with its cache policy.
func (e *environment) virtiofsd(policy, share string) (*process, string, error) {
	const program = "/usr/lib/qemu/virtiofsd"
	if _, err := os.Stat(program); err != nil {
		return nil, "", errors.New("virtiofsd is not installed (package qemu-system-common)")
	}
	return e.serve("virtiofsd", func(socket string) []string {
		return []string{program, "--socket-path=" + socket, "-o", "source=" + share, "-o", "cache=" + policy}
	})
}

// serve starts a server of one virtual machine and waits for its socket.
func (e *environment) serve(name string, argv func(socket string) []string) (*process, string, error) {
	dir, err := os.MkdirTemp(e.dir, name)
	if err != nil {
		return nil, "", err
	}
	socket := filepath.Join(dir, "socket")
	p, err := launch(e.ctx, time.Hour, argv(socket), nil)
	if err != nil {
		return nil, "", err
	}
	for range 200 {
		if _, err := os.Stat(socket); err == nil {
			return p, socket, nil
		}
		select {
		case <-p.done:
			return nil, "", p.failure(fmt.Errorf("%s: %w", name, p.waitErr))
		case <-time.After(10 * time.Millisecond):
		}
	}
	p.kill()
	return nil, "", fmt.Errorf("%s made no socket", name)
}

// guestSubject runs a guest program's jobs on a VMM whose command line argv
// makes; the numbers are the guest's results and the VMM's processor time.
type guestSubject struct {
	limit time.Duration
	argv  func() ([]string, error)
	env   []string
	// server is virtiofsd or swtpm, started for each run by argv.
	server *process
	// beside runs next to the guest from the moment that word appears.
	word   string
	beside func(*process) error
}

func (s *guestSubject) run(ctx context.Context) (numbers, error) {
	argv, err := s.argv()
	if err != nil {
		return nil, err
	}
	if s.server != nil {
		defer s.server.kill()
	}
	words := []string{guestReady}
	if s.word != "" {
		words = append(words, s.word)
	}
	p, err := launch(ctx, s.limit, argv, s.env, words...)
	if err != nil {
		return nil, err
	}
	defer p.kill()
	if s.beside != nil {
		if err := p.await(s.word); err != nil {
			return nil, err
		}
		if err := s.beside(p); err != nil {
			return nil, p.failure(err)
		}
	}
	if err := p.wait(); err != nil {
		return nil, p.failure(err)
	}
	n, err := p.results()
	n["to init"], n["to end"], n["CPU time"] = p.seen.at(guestReady).Seconds(), p.end.Seconds(), p.cpu()
	if s.server != nil {
		s.server.kill()
		n["CPU time"] += s.server.cpu()
	}
	if err == nil && n["to init"] == 0 {
		err = p.failure(errors.New("the guest's init did not run"))
	}
	return n, err
}

// software makes the two subjects of a case on software CPUs: gvmspawn and
// QEMU's TCG. Each run gets its own share from makeShare, if that is not nil.
func (e *environment) software(p *plan, m machine, limit time.Duration, makeShare func() (string, error)) {
	e.addGvmspawn(p, "gvmspawn", m, limit, makeShare)
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		p.skip("QEMU is not installed")
		return
	}
	if makeShare == nil {
		s := &guestSubject{limit: limit, argv: func() ([]string, error) { return qemuArgs(qemu, m, "tcg", ""), nil }}
		p.subjects = append(p.subjects, subject{"QEMU TCG", s.run})
		return
	}
	for _, policy := range []string{"always", "auto"} {
		s := &guestSubject{limit: limit}
		s.argv = func() ([]string, error) {
			share, err := makeShare()
			if err != nil {
				return nil, err
			}
			m.share = share
			server, socket, err := e.virtiofsd(policy, share)
			s.server = server
			return qemuArgs(qemu, m, "tcg", socket), err
		}
		p.subjects = append(p.subjects, subject{"QEMU TCG, virtiofsd cache=" + policy, s.run})
	}
}

// addGvmspawn adds gvmspawn on the software CPU with further options.
func (e *environment) addGvmspawn(p *plan, name string, m machine, limit time.Duration, makeShare func() (string, error), options ...string) {
	s := &guestSubject{limit: limit}
	s.argv = func() (argv []string, err error) {
		if makeShare != nil {
			m.share, err = makeShare()
		}
		return e.gvmspawnArgs(m, "no", options...), err
	}
	p.subjects = append(p.subjects, subject{name, s.run})
}

// trixie is the kernel with virtio over PCI and virtio-fs built in.
func (e *environment) trixie() guesttest.Kernel {
	return guesttest.KernelAsset(e.host, "kernel-trixie")
}
