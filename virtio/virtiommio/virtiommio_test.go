package virtiommio_test

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/virtiommio"
	"github.com/gvmspawn/gvmspawn/virtio/virtiotest"
	"github.com/gvmspawn/gvmspawn/virtio/virtq"
	"github.com/gvmspawn/gvmspawn/virtio/virtq/virtqtest"
	"github.com/gvmspawn/gvmspawn/vmm/bus"
	"github.com/gvmspawn/gvmspawn/vmm/bus/bustest"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

const (
	base     = 0xe800_0000
	gsi      = 5
	statusOK = 1 | 2 | 4 | 8
)

// rig is a guest that sees one virtio-mmio device.
type rig struct {
	testing.TB
	bus.Bus
	m     *virtiommio.Device
	dev   *virtiotest.Fake
	wires *bustest.Wires
	mem   *virtqtest.Memory
	d     *virtqtest.Driver
}

func newRig(t testing.TB, dev *virtiotest.Fake) *rig {
	r := &rig{TB: t, dev: dev, wires: new(bustest.Wires), mem: virtqtest.NewMemory(t, 1<<20)}
	m := virtiommio.New("test", dev, r.mem.Memory, r.wires, gsi, virtiommio.Options{
		SharedMemory: map[uint8]mem.GPA{1: 0x12_3400_0000},
	})
	r.m = m
	t.Cleanup(m.Close)
	if err := r.MMIO.Map("test", base, virtiommio.Size, m); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) get(reg uint64) uint64    { return r.MMIORead(base+reg, 4) }
func (r *rig) set(reg uint64, v uint64) { r.MMIOWrite(base+reg, 4, v) }
func (r *rig) line() *bustest.Line      { return r.wires.Line(gsi) }

func (r *rig) expect(what string, got, want uint64) {
	r.Helper()
	if got != want {
		r.Errorf("%s: got %#x, want %#x", what, got, want)
	}
}

func (r *rig) negotiate() {
	r.set(0x70, 1)
	r.set(0x70, 3)
	for sel := range uint64(2) {
		r.set(0x14, sel)
		r.set(0x24, sel)
		r.set(0x20, r.get(0x10))
	}
	r.set(0x70, 11)
}

func (r *rig) queue(i uint64, c virtq.Config) {
	r.set(0x30, i)
	r.set(0x38, uint64(c.Size))
	for reg, gpa := range map[uint64]mem.GPA{0x80: c.Desc, 0x90: c.Avail, 0xa0: c.Used} {
		r.set(reg, uint64(gpa))
		r.set(reg+4, uint64(gpa)>>32)
	}
	r.set(0x44, 1)
}

func (r *rig) start() {
	r.Helper()
	r.negotiate()
	r.d = virtqtest.New(r.TB, 16, virtqtest.Options{Memory: r.mem, EventIdx: true, Indirect: true, NoQueue: true})
	r.queue(0, r.d.Config)
	r.set(0x70, statusOK)
	r.expect("status", r.get(0x70), statusOK)
}

// request sends one and handles its interrupt as a driver does.
func (r *rig) request() {
	r.Helper()
	r.d.SetInterrupts(true)
	r.d.Add([][]byte{{1, 2, 3}}, []int{3})
	if r.d.KickNeeded() {
		r.set(0x50, 0)
	}
	r.until("interrupt", func() bool { return r.line().Level() })
	r.set(0x64, r.get(0x60))
	r.until("answer", func() bool { _, ok := r.d.Used(); return ok })
}

func (r *rig) until(what string, f func() bool) {
	r.Helper()
	for end := time.Now().Add(5 * time.Second); !f(); time.Sleep(50 * time.Microsecond) {
		if time.Now().After(end) {
			r.Fatalf("no %s", what)
		}
	}
}

// §4.2.2: registers after reset.
func TestInitialState(t *testing.T) {
	r := newRig(t, new(virtiotest.Fake))
	for reg, want := range map[uint64]uint64{
		0: 0x74726976, 4: 2, 8: 4, 0xc: 0x1af4, 0x34: 64, 0x44: 0, 0x60: 0, 0x70: 0,
		0x14: 0, 0x20: 0, 0x38: 0, 0x50: 0, 0x80: 0, 0xfc: 0, // write-only ones read as 0
	} {
		r.expect("register", r.get(reg), want)
	}
	r.set(0x14, 1)
	r.expect("features, word 1", r.get(0x10), 1)
	r.set(0x14, 2)
	r.expect("features, word 2", r.get(0x10), 0)
	for _, sel := range []uint64{2, 255, 0x8000_0000, 0xffff_ffff} {
		r.set(0x30, sel)
		r.set(0x38, 8)
		r.set(0x44, 1)
		r.expect("QueueNumMax of no queue", r.get(0x34), 0)
		r.expect("QueueReady of no queue", r.get(0x44), 0)
	}
}

func TestRequestsAndReset(t *testing.T) {
	r := newRig(t, new(virtiotest.Fake))
	for range 3 {
		r.start()
		for range 20 {
			r.request()
		}
		r.set(0x70, 0)
		r.expect("status after reset", r.get(0x70), 0)
		r.expect("QueueReady after reset", r.get(0x44), 0)
	}
	if n := len(r.wires.Doorbells()); n != 0 {
		t.Errorf("%d doorbells are open after a reset", n)
	}
}

// §4.2.2.1: InterruptStatus and InterruptACK; the line follows.
func TestInterrupts(t *testing.T) {
	r := newRig(t, new(virtiotest.Fake))
	r.start()
	a := r.dev.Activation()
	a.ConfigChanged()
	r.expect("InterruptStatus", r.get(0x60), 2)
	r.expect("ConfigGeneration", r.get(0xfc), 1)
	r.set(0x64, 1)
	if !r.line().Level() {
		t.Error("the line fell with a cause left")
	}
	a.ConfigChanged()
	r.set(0x64, 2)
	r.expect("InterruptStatus", r.get(0x60), 0)
	if r.line().Level() || r.line().Edges() != 1 {
		t.Errorf("line %v after %d edges", r.line().Level(), r.line().Edges())
	}
	a.ConfigChanged()
	r.set(0x70, 0)
	r.expect("InterruptStatus after reset", r.get(0x60), 0)
	if r.line().Level() {
		t.Error("the line is high after a reset")
	}
}

// §2.10, §4.2.2: shared memory regions, and ones where there is none.
func TestSharedMemory(t *testing.T) {
	r := newRig(t, &virtiotest.Fake{Shared: []virtio.SharedMemory{{ID: 1, Size: 1 << 33}, {ID: 2, Size: 4096}}})
	for sel, want := range map[uint64][4]uint64{
		0: {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, 1: {0, 2, 0x3400_0000, 0x12},
		2: {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, 257: {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
	} {
		r.set(0xac, sel)
		for i, w := range want {
			r.expect("shared memory register", r.get(0xb0+4*uint64(i)), w)
		}
	}
}

// CVE-2026-5747; hostile-guest.md rows 3 and 5.
func TestFrozenAfterDriverOK(t *testing.T) {
	r := newRig(t, new(virtiotest.Fake))
	r.start()
	before, _ := r.m.Core().Ring(0)
	for reg := uint64(0); reg < 0x100; reg += 4 {
		if reg == 0x70 {
			continue
		}
		for _, v := range []uint64{0, 1, 3, 32, 0xffffffff} {
			r.set(reg, v)
		}
		r.set(0x30, 0)
	}
	if after, _ := r.m.Core().Ring(0); after != before {
		t.Errorf("ring became %+v", after)
	}
	r.request()
}

// hostile-guest.md row 1: every offset, width and alignment.
func TestAnyAccess(t *testing.T) {
	r := newRig(t, new(virtiotest.Fake))
	r.expect("half a register", r.MMIORead(base, 2), 0xffff)
	r.expect("two registers", r.MMIORead(base, 8), ^uint64(0))
	r.expect("misaligned", r.MMIORead(base+2, 4), 0xffffffff)
	r.MMIOWrite(base+0x70, 1, 1)
	r.MMIOWrite(base+0x70, 4, 0x101)
	r.expect("status after a byte, and after too many bits", r.get(0x70), 0)
	for _, v := range []uint64{0, ^uint64(0), 0x8181818181818181} {
		for _, size := range []int{1, 2, 4, 8} {
			for off := uint64(0); off+uint64(size) <= 0x1000; off++ {
				r.MMIOWrite(base+off, size, v)
				r.MMIORead(base+off, size)
			}
		}
	}
	r.set(0x70, 0)
	r.start()
	r.request()
}

func TestNoAllocations(t *testing.T) {
	r := newRig(t, new(virtiotest.Fake))
	r.start()
	if n := testing.AllocsPerRun(100, func() {
		r.set(0x50, 1)
		r.get(0x70)
		r.MMIORead(base+0x100, 8)
		r.dev.Activation().ConfigChanged()
		r.set(0x64, 3)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzRegisters drives random accesses to the registers.
func FuzzRegisters(f *testing.F) {
	f.Add([]byte{0, 0x70, 0, 2, 1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := newRig(t, new(virtiotest.Fake))
		r.start()
		for ; len(in) >= 8; in = in[8:] {
			off, size := uint64(binary.LittleEndian.Uint16(in[1:])), 1<<(in[3]&3)
			v := uint64(binary.LittleEndian.Uint32(in[4:]))
			switch in[0] & 7 {
			case 0, 1, 2:
				r.set(off&0xfc, v)
			case 3:
				r.MMIOWrite(base+off&0xff7, size, v)
			case 4:
				r.MMIORead(base+off&0xff7, size)
			case 5:
				r.set(0x70, v&0xff)
			case 6:
				r.negotiate()
			case 7:
				r.set(0x70, statusOK)
			}
		}
		r.m.Reset()
		r.start()
		r.request()
		if r.dev.Misuse.Load() != 0 {
			t.Error("the device's contract was broken")
		}
	})
}
