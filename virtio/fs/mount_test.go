package fs

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

// Environment of the test binary's own children.
const (
	envServe = "FS_TEST_SERVE" // serve /dev/fuse on descriptor 3 with this Config
	envRoot  = "FS_TEST_ROOT"  // descriptor 4 is the Config's Root
	envInNS  = "FS_TEST_IN_NS" // we are in a mount namespace of our own
)

// TestMain runs the tests as root in a mount namespace of their own, so that
// no mount outlives them.
func TestMain(m *testing.M) {
	if cfg := os.Getenv(envServe); cfg != "" {
		serveFUSE(cfg)
		return
	}
	if os.Geteuid() != 0 || os.Getenv(envInNS) != "" {
		os.Exit(m.Run())
	}
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Env = append(os.Environ(), envInNS+"=1")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	err := c.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		os.Exit(0)
	case errors.As(err, &exit):
		os.Exit(max(exit.ExitCode(), 1))
	}
	os.Exit(m.Run()) // no namespace to be had: the tests that mount will skip
}

// mount serves a share to this machine's own kernel: what it sends through
// /dev/fuse has the same form as in a virtqueue. The device is in a child
// process, as a process that waits for itself may wait forever. root, if given,
// is its Config.Root.
func mount(t testing.TB, cfg Config, root ...*os.File) string {
	needRoot(t)
	if os.Getenv(envInNS) == "" {
		t.Skip("needs a mount namespace")
	}
	fuse, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skip("no /dev/fuse: ", err)
	}
	defer fuse.Close()
	dir := t.TempDir()
	opts := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions", fuse.Fd())
	if err := unix.Mount("gvmspawn-test", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, opts); err != nil {
		t.Skip("cannot mount FUSE: ", err)
	}
	b, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("/proc/self/exe")
	// With the race detector a process sleeps for a second before it ends, so
	// that its other goroutines can report; here there are none then.
	c.Env = append(os.Environ(), envServe+"="+string(b), "GORACE="+os.Getenv("GORACE")+" atexit_sleep_ms=0")
	if len(root) > 0 {
		c.Env = append(c.Env, envRoot+"=1")
	}
	c.Stdout, c.Stderr, c.ExtraFiles = os.Stdout, os.Stderr, append([]*os.File{fuse}, root...)
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
			_ = unix.Unmount(dir, unix.MNT_DETACH|unix.MNT_FORCE)
		}
		late := time.AfterFunc(10*time.Second, func() { _ = c.Process.Kill() })
		if err := c.Wait(); err != nil {
			t.Errorf("the server: %v", err)
		}
		late.Stop()
	})
	return dir
}

// mounted mounts a share of a new directory.
func mounted(t testing.TB, edit func(*Config)) (mnt, dir string) {
	needRoot(t)
	dir = t.TempDir()
	cfg := Config{Tag: "test", Path: dir}
	if edit != nil {
		edit(&cfg)
	}
	return mount(t, cfg), dir
}

// serveFUSE is the child.
func serveFUSE(config string) {
	var cfg Config
	if err := json.Unmarshal([]byte(config), &cfg); err != nil {
		panic(err)
	}
	if os.Getenv(envRoot) != "" {
		cfg.Root = os.NewFile(4, cfg.Path)
	}
	d, err := New(cfg)
	if err != nil {
		panic(err)
	}
	var wg sync.WaitGroup
	for range 8 { // as many can wait for locks at once
		wg.Add(1)
		go func() {
			defer wg.Done()
			pump(d, 3)
		}()
	}
	wg.Wait()
	d.endSession()
	if n := fdsInUse.Load(); n != 1 {
		panic(fmt.Sprintf("%d descriptors are left over", n-1))
	}
	if err := d.Close(); err != nil {
		panic(err)
	}
}

// pump serves requests until the file system is unmounted.
func pump(d *Device, fd int) {
	var r request
	r.init(d, nil)
	in, out := make([]byte, maxWrite+2*pageSize), make([]byte, maxWrite+2*pageSize)
	for {
		n, err := unix.Read(fd, in)
		switch {
		case err == unix.ENODEV || err == unix.ECONNABORTED: // the latter where the unmount aborts the connection
			return
		case err == unix.EINTR || err == unix.EAGAIN || err == unix.ENOENT:
			continue
		case err != nil:
			panic(err)
		}
		r.chain.Readable, r.chain.ReadableLen = pieces(r.chain.Readable[:0], in[:n], 40, 40), uint64(n)
		room := len(out)
		if op := binary.LittleEndian.Uint32(in[4:]); opcode(op) == opRead {
			room = outHeaderSize + int(binary.LittleEndian.Uint32(in[inHeaderSize+16:]))
		}
		r.chain.Writable, r.chain.WritableLen = pieces(r.chain.Writable[:0], out[:room], 16), uint64(room)
		m := r.serve()
		if m == 0 {
			continue
		}
		if _, err := unix.Write(fd, out[:m]); err != nil && err != unix.ENOENT {
			panic(fmt.Sprintf("reply to opcode %d: %v", r.hdr.Opcode, err))
		}
	}
}

// pieces cuts b as a driver does: header, arguments, then pages.
func pieces(v []virtq.Buffer, b []byte, heads ...int) []virtq.Buffer {
	for len(b) > 0 {
		n := pageSize
		if len(heads) > 0 {
			n, heads = heads[0], heads[1:]
		}
		n = min(n, len(b))
		v = append(v, virtq.Buffer{Bytes: b[:n]})
		b = b[n:]
	}
	return v
}
