package vmm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// The test binary is also the guest's init: see init and guestVsock.
const (
	guestRole = "gvmspawn_guest" // on the kernel command line

	portEcho      = 5000 // the host echoes until the end of the stream
	portOrder     = 5001 // the host reads and discards; closing orders the test's steps
	portSeqpacket = 5002 // the host echoes messages
	portSmall     = 5003 // the host answers each connection with one line
	portGuest     = 6000 // the guest echoes

	bulk             = 8 << 20
	smallConnections = 300
)

func init() {
	if os.Getpid() != 1 {
		return
	}
	// What started init need not have handed /proc and the environment on.
	_ = unix.Mount("proc", "/proc", "proc", 0, "")
	if cmdline, err := os.ReadFile("/proc/cmdline"); err == nil && bytes.Contains(cmdline, []byte(guestRole+"=vsock")) {
		if err := guestVsock(); err != nil {
			fmt.Println("GUEST FAILED:", err)
		} else {
			fmt.Println("GUEST PASSED")
		}
		unix.Sync()
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
}

// TestBootVsock has Linux's own driver talk to the vsock device: bulk data both
// ways with half-close, seqpacket, connections from both sides.
func TestBootVsock(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a machine on the software CPU")
	}
	kernel := guesttest.KernelAsset(t, "kernel-trixie")
	tree := guesttest.BusyboxTree(t, "")
	self, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	f, err := elf.NewFile(bytes.NewReader(self))
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		t.Skip("the test binary is not static: set CGO_ENABLED=0")
	}
	if err := os.WriteFile(filepath.Join(tree, "sbin/guest"), self, 0o755); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	ready := make(chan struct{})
	m, err := New(Config{
		Name: "vsock", CPUs: 1, RAM: 512 << 20, Accel: AccelSoft,
		Boot: Boot{
			Kernel: kernel.Path, CommandLine: "console=hvc0 root=root rootfstype=virtiofs rw quiet panic=-1 init=/sbin/guest " + guestRole + "=vsock",
			Root: &Root{Share: "root", ModuleTree: tree},
		},
		Console: Console{Out: &out},
		Shares:  []Share{{Tag: "root", Path: tree}},
		Vsock: &Vsock{CID: 77, Accept: map[uint32]func(net.Conn){
			portEcho: func(c net.Conn) {
				_, _ = io.Copy(c, c)
				_ = c.(interface{ CloseWrite() error }).CloseWrite()
				_ = c.Close()
			},
			portOrder: func(c net.Conn) {
				_, _ = io.Copy(io.Discard, c)
				_ = c.Close()
				close(ready)
			},
			portSmall: func(c net.Conn) {
				_, _ = fmt.Fprintf(c, "%v\n", c.RemoteAddr())
				_ = c.Close()
			},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	l, err := m.vsock.ListenSeqpacket(portSeqpacket)
	if err != nil {
		t.Fatal(err)
	}
	go accept(l, func(c net.Conn) {
		buf := make([]byte, 64<<10)
		for n, err := c.Read(buf); err == nil; n, err = c.Read(buf) {
			_, _ = c.Write(buf[:n])
		}
		_ = c.Close()
	})
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	dialed := make(chan error, 1)
	go func() {
		<-ready
		dialed <- dialGuest(ctx, m)
	}()
	if end, err := m.Run(ctx); err != nil {
		t.Errorf("machine ended with %v, %v", end, err)
	}
	t.Logf("guest:\n%s", out.String())
	if !strings.Contains(out.String(), "GUEST PASSED") {
		t.Error("the guest half failed")
	}
	select {
	case err = <-dialed:
	default:
		err = errors.New("did not happen")
	}
	if err != nil {
		t.Errorf("connection to the guest: %v", err)
	}
}

// dialGuest connects to the guest, sends, half-closes, and reads it all back.
func dialGuest(ctx context.Context, m *Machine) error {
	c, err := m.DialVsock(ctx, portGuest)
	if err != nil {
		return err
	}
	defer c.Close()
	return exchange(c, c, c.(interface{ CloseWrite() error }).CloseWrite, 1<<20)
}

// exchange sends n bytes while it reads them back, and compares.
func exchange(w io.Writer, r io.Reader, closeWrite func() error, n int) error {
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(i>>8) ^ byte(i)
	}
	sent := make(chan error, 1)
	go func() {
		_, err := w.Write(data)
		sent <- errors.Join(err, closeWrite())
	}()
	got, err := io.ReadAll(r)
	if err := errors.Join(err, <-sent); err != nil {
		return err
	}
	if sha256.Sum256(got) != sha256.Sum256(data) {
		return fmt.Errorf("%d bytes came back, not the %d sent", len(got), n)
	}
	return nil
}

// socket is a guest's vsock socket, blocking.
type socket int

func (s socket) Read(p []byte) (int, error) {
	n, err := unix.Read(int(s), p)
	if n == 0 && err == nil {
		return 0, io.EOF
	}
	return max(n, 0), err
}

func (s socket) Write(p []byte) (int, error) {
	total := 0
	for len(p) > 0 {
		n, err := unix.Write(int(s), p)
		if err != nil {
			return total, err
		}
		total, p = total+n, p[n:]
	}
	return total, nil
}

func (s socket) closeWrite() error { return unix.Shutdown(int(s), unix.SHUT_WR) }
func (s socket) close()            { _ = unix.Close(int(s)) }

func guestDial(typ int, port uint32) (socket, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, typ, 0)
	if err != nil {
		return 0, err
	}
	return socket(fd), unix.Connect(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_HOST, Port: port})
}

// guestVsock is the guest's half.
func guestVsock() error {
	for _, step := range []struct {
		name string
		f    func() error
	}{
		{"bulk", guestBulk}, {"small", guestSmall}, {"seqpacket", guestSeqpacket}, {"refused", guestRefused}, {"listen", guestListen},
	} {
		start := time.Now()
		if err := step.f(); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		fmt.Printf("%s: %v\n", step.name, time.Since(start).Round(time.Millisecond))
	}
	return nil
}

func guestBulk() error {
	s, err := guestDial(unix.SOCK_STREAM, portEcho)
	if err != nil {
		return err
	}
	defer s.close()
	return exchange(s, s, s.closeWrite, bulk)
}

func guestSmall() error {
	for range smallConnections {
		s, err := guestDial(unix.SOCK_STREAM, portSmall)
		if err != nil {
			return err
		}
		sa, err := unix.Getsockname(int(s))
		b, rerr := io.ReadAll(s)
		s.close()
		if err := errors.Join(err, rerr); err != nil {
			return err
		}
		if want := fmt.Sprintf("77:%d\n", sa.(*unix.SockaddrVM).Port); string(b) != want {
			return fmt.Errorf("the host sees %q, want %q", b, want)
		}
	}
	return nil
}

func guestSeqpacket() error {
	s, err := guestDial(unix.SOCK_SEQPACKET, portSeqpacket)
	if err != nil {
		return err
	}
	defer s.close()
	buf := make([]byte, 64<<10)
	for _, n := range []int{1, 100, 4096, 5000, 60000} {
		msg := bytes.Repeat([]byte{byte(n)}, n)
		if _, err := s.Write(msg); err != nil {
			return err
		}
		if k, err := s.Read(buf); err != nil || !slices.Equal(buf[:k], msg) {
			return fmt.Errorf("message of %d bytes came back with %d: %w", n, k, err)
		}
	}
	return nil
}

func guestRefused() error {
	s, err := guestDial(unix.SOCK_STREAM, 4)
	s.close()
	if !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("port without a listener: %w", err)
	}
	return nil
}

// guestListen echoes one connection of the host's.
func guestListen() error {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: portGuest}); err != nil {
		return err
	}
	if err := unix.Listen(fd, 1); err != nil {
		return err
	}
	order, err := guestDial(unix.SOCK_STREAM, portOrder)
	if err != nil {
		return err
	}
	order.close()
	c, _, err := unix.Accept(fd)
	if err != nil {
		return err
	}
	s := socket(c)
	defer s.close()
	if _, err := io.Copy(struct{ io.Writer }{s}, struct{ io.Reader }{s}); err != nil {
		return err
	}
	if err := s.closeWrite(); err != nil {
		return err
	}
	// Until the host has everything.
	_, _ = s.Read(make([]byte, 1))
	return nil
}
