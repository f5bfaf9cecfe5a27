package vhost

import (
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/virtq"
	"github.com/gvmspawn/gvmspawn/virtio/virtq/virtqtest"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

var _ virtio.Device = (*Vsock)(nil)

// The structures have the sizes of linux/vhost_types.h, and each request's number says
// so itself (asm-generic/ioctl.h).
func TestSpec(t *testing.T) {
	var table memoryTable
	if unsafe.Offsetof(table.regions) != 8 || unsafe.Sizeof(memoryRegion{}) != 32 {
		t.Error("struct vhost_memory")
	}
	if unsafe.Offsetof(vringAddr{}.desc) != 8 || unsafe.Offsetof(vringAddr{}.used) != 16 || unsafe.Offsetof(vringAddr{}.avail) != 24 {
		t.Error("struct vhost_vring_addr")
	}
	const write, read = 1, 2
	for _, c := range []struct {
		request, dir, nr uint32
		size             uintptr
	}{
		{VHOST_GET_FEATURES, read, 0x00, 8}, {VHOST_SET_FEATURES, write, 0x00, 8}, {VHOST_SET_OWNER, 0, 0x01, 0},
		{VHOST_SET_MEM_TABLE, write, 0x03, unsafe.Offsetof(table.regions)},
		{VHOST_SET_VRING_NUM, write, 0x10, unsafe.Sizeof(vringState{})}, {VHOST_SET_VRING_ADDR, write, 0x11, unsafe.Sizeof(vringAddr{})},
		{VHOST_SET_VRING_BASE, write, 0x12, unsafe.Sizeof(vringState{})}, {VHOST_SET_VRING_KICK, write, 0x20, unsafe.Sizeof(vringFile{})},
		{VHOST_SET_VRING_CALL, write, 0x21, unsafe.Sizeof(vringFile{})}, {VHOST_NET_SET_BACKEND, write, 0x30, unsafe.Sizeof(vringFile{})},
		{VHOST_VSOCK_SET_GUEST_CID, write, 0x60, 8}, {VHOST_VSOCK_SET_RUNNING, write, 0x61, 4},
	} {
		if want := c.dir<<30 | uint32(c.size)<<16 | 0xaf<<8 | c.nr; c.request != want {
			t.Errorf("request %#x should be %#x", c.request, want)
		}
	}
}

// The kernel sees RAM and pluggable RAM, neither ROM nor windows.
func TestTable(t *testing.T) {
	m := mem.New()
	t.Cleanup(func() { _ = m.Close() })
	for _, r := range []struct {
		base mem.GPA
		kind mem.Kind
	}{{0, mem.RAM}, {1 << 30, mem.ROM}, {1 << 32, mem.RAM}, {1 << 33, mem.Pluggable}, {1 << 34, mem.Window}} {
		if _, err := m.Add("r", r.base, 4<<20, r.kind); err != nil {
			t.Fatal(err)
		}
	}
	got, err := table(m)
	if err != nil || got.nregions != 3 || got.padding != 0 {
		t.Fatalf("%d regions, %v", got.nregions, err)
	}
	for i, base := range []uint64{0, 1 << 32, 1 << 33} {
		r := got.regions[i]
		if r.guestPhysAddr != base || r.memorySize != 4<<20 || r.userspaceAddr != uint64(m.Find(mem.GPA(base)).HostAddr()) || r.flagsPadding != 0 {
			t.Errorf("region %d: %+v", i, r)
		}
	}
}

// null is a file that knows no vhost request.
func null(t testing.TB) *os.File {
	t.Helper()
	f, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// A file that is no vhost device is an error that names the request.
func TestErrors(t *testing.T) {
	m := virtqtest.NewMemory(t, 1<<20)
	if _, err := NewVsock(null(t), m.Memory, 5); err == nil || !strings.Contains(err.Error(), "VHOST_GET_FEATURES") {
		t.Error(err)
	}
	if err := SetGuestCID(null(t), 5); err == nil || errors.Is(err, ErrCIDInUse) {
		t.Error(err)
	}
	v := &Vsock{b: newBackend(null(t), m.Memory)}
	if err := v.Activate(&virtio.Activation{Queues: make([]*virtq.Queue, 3)}); err == nil {
		t.Error("no queues, no error")
	}
	v.Reset()
}

// §5.10.4.
func TestConfig(t *testing.T) {
	v := &Vsock{cid: 0x1234, f: virtio.Bits(1)}
	p := make([]byte, 10)
	v.ReadConfig(0, p)
	v.WriteConfig(0, p)
	if binary.LittleEndian.Uint64(p) != 0x1234 || v.Features() != virtio.Bits(1) || len(v.QueueSizes()) != 3 || v.Type() != virtio.TypeVsock {
		t.Errorf("config %x", p)
	}
}

// An eventfd's events are passed on, and closing waits for the goroutine.
func TestCall(t *testing.T) {
	seen := make(chan struct{}, 10)
	c, err := newCall(func() { seen <- struct{}{} })
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := unix.Write(c.fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
			t.Fatal(err)
		}
		select {
		case <-seen:
		case <-time.After(10 * time.Second):
			t.Fatal("no call")
		}
	}
	c.close()
}

// FuzzRing hands rings at arbitrary addresses to a file that refuses them: what is not
// wholly in RAM is found before.
func FuzzRing(f *testing.F) {
	f.Add(uint64(0), uint64(4096), uint64(8192), uint16(64))
	f.Add(uint64(1<<20-16), uint64(1<<63), ^uint64(0)&^3, uint16(256))
	f.Fuzz(func(t *testing.T, desc, avail, used uint64, size uint16) {
		m := virtqtest.NewMemory(t, 1<<20)
		bell := &eventBell{}
		q, err := virtq.New(virtq.Config{Mem: m.Memory, Size: size, Desc: mem.GPA(desc), Avail: mem.GPA(avail), Used: mem.GPA(used), Bell: bell})
		if err != nil {
			return
		}
		b := newBackend(null(t), m.Memory)
		if err := b.addRing(0, q, -1, func() {}); err == nil {
			t.Error("a file without vhost took a ring")
		}
		b.forget()
	})
}

// eventBell is a bell that has an eventfd, or says so.
type eventBell struct{}

func (*eventBell) Ring()        {}
func (*eventBell) Wait() bool   { return false }
func (*eventBell) Close() error { return nil }
func (*eventBell) FD() int      { return 0 }
