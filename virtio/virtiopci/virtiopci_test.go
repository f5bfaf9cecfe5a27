package virtiopci_test

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/devices/pci"
	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/virtiopci"
	"github.com/gvmspawn/gvmspawn/virtio/virtiotest"
	"github.com/gvmspawn/gvmspawn/virtio/virtq"
	"github.com/gvmspawn/gvmspawn/virtio/virtq/virtqtest"
	"github.com/gvmspawn/gvmspawn/vmm/bus"
	"github.com/gvmspawn/gvmspawn/vmm/bus/bustest"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

const (
	ecam     = 0xe000_0000
	lowStart = 0xc000_0000
	statusOK = 1 | 2 | 4 | 8
)

// rig is a guest that sees one virtio function.
type rig struct {
	testing.TB
	bus.Bus
	host  *pci.Host
	f     *virtiopci.Function
	dev   *virtiotest.Fake
	wires *bustest.Wires
	mem   *virtqtest.Memory
	d     *virtqtest.Driver
	cfg   uint64 // address of the function in ECAM
	bar   uint64
	caps  map[byte]capability // by cfg_type, the last of each
	first map[byte]capability // the one that a driver takes (§4.1.4)
}

type capability struct {
	at             uint64 // in configuration space
	bar, id        byte
	offset, length uint64
}

func newRig(t testing.TB, dev *virtiotest.Fake) *rig {
	r := &rig{TB: t, dev: dev, wires: new(bustest.Wires), mem: virtqtest.NewMemory(t, 1<<20)}
	var err error
	r.host, err = pci.NewHost(&r.MMIO, pci.Config{
		Low: pci.Window{Start: lowStart, End: ecam}, High: pci.Window{Start: 1 << 36, End: 1 << 38}, ECAM: ecam,
		Ports: pci.Window{Start: 0x1000, End: 0x2000}, PortSpace: &r.Port,
	})
	r.check(err)
	r.check(r.MMIO.Map("ecam", ecam, 1<<20, r.host.ECAM()))
	r.f, err = virtiopci.New("test", dev, r.mem.Memory, r.wires, virtiopci.Options{SharedMemory: map[uint8]mem.GPA{4: 1<<36 + 1<<34}})
	r.check(err)
	t.Cleanup(r.f.Close)
	a, err := r.host.Add(r.f.Function)
	r.check(err)
	r.cfg = ecam + uint64(a.Slot)<<15
	r.MMIOWrite(r.cfg+4, 2, pci.CommandMemory|pci.CommandBusMaster)
	r.bar = r.read(r.cfg+0x10, 4)
	r.walkCaps()
	return r
}

func (r *rig) check(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

func (r *rig) read(addr uint64, size int) uint64 { return r.MMIORead(addr, size) }

func (r *rig) expect(what string, got, want uint64) {
	r.Helper()
	if got != want {
		r.Errorf("%s: got %#x, want %#x", what, got, want)
	}
}

// walkCaps finds the structures as a driver does (§4.1.4).
func (r *rig) walkCaps() {
	r.caps, r.first = make(map[byte]capability), make(map[byte]capability)
	for at := r.read(r.cfg+0x34, 1); at != 0; at = r.read(r.cfg+at+1, 1) {
		if r.read(r.cfg+at, 1) == pci.CapVendor {
			kind := byte(r.read(r.cfg+at+3, 1))
			r.caps[kind] = capability{
				at: at, bar: byte(r.read(r.cfg+at+4, 1)), id: byte(r.read(r.cfg+at+5, 1)),
				offset: r.read(r.cfg+at+8, 4), length: r.read(r.cfg+at+12, 4),
			}
			if _, ok := r.first[kind]; !ok {
				r.first[kind] = r.caps[kind]
			}
		}
	}
}

func (r *rig) common(off uint64) uint64           { return r.bar + r.caps[1].offset + off }
func (r *rig) set(off uint64, size int, v uint64) { r.MMIOWrite(r.common(off), size, v) }
func (r *rig) get(off uint64, size int) uint64    { return r.read(r.common(off), size) }
func (r *rig) status() uint64                     { return r.get(20, 1) }

// negotiate goes up to FEATURES_OK with all features.
func (r *rig) negotiate() {
	r.set(20, 1, 1)
	r.set(20, 1, 3)
	for sel := range uint64(2) {
		r.set(0, 4, sel)
		r.set(8, 4, sel)
		r.set(12, 4, r.get(4, 4))
	}
	r.set(20, 1, 11)
}

// queue programs queue i and its vector, i+1.
func (r *rig) queue(i uint64, c virtq.Config) {
	r.set(22, 2, i)
	r.set(24, 2, uint64(c.Size))
	r.set(26, 2, i+1)
	r.set(32, 8, uint64(c.Desc))
	r.set(40, 4, uint64(c.Avail))
	r.set(44, 4, uint64(c.Avail)>>32)
	r.set(48, 4, uint64(c.Used))
	r.set(28, 2, 1)
}

// enableMSIX routes and unmasks vectors 0 and 1.
func (r *rig) enableMSIX() {
	for v := range uint64(2) {
		r.MMIOWrite(r.bar+0x4000+16*v, 8, 0xfee00000)
		r.MMIOWrite(r.bar+0x4000+16*v+8, 8, 0x40+v)
	}
	for at := r.read(r.cfg+0x34, 1); at != 0; at = r.read(r.cfg+at+1, 1) {
		if r.read(r.cfg+at, 1) == pci.CapMSIX {
			r.MMIOWrite(r.cfg+at+2, 2, 0x8000)
		}
	}
}

func (r *rig) start() {
	r.Helper()
	r.enableMSIX()
	r.negotiate()
	r.set(16, 2, 0)
	r.d = virtqtest.New(r.TB, 16, virtqtest.Options{Memory: r.mem, EventIdx: true, Indirect: true, NoQueue: true})
	r.queue(0, r.d.Config)
	r.set(20, 1, statusOK)
	r.expect("status", r.status(), statusOK)
}

func (r *rig) notifyAddr(i uint64) uint64 { return r.bar + r.caps[2].offset + 4*i }

func (r *rig) request() {
	r.Helper()
	r.requestBy(func() { r.MMIOWrite(r.notifyAddr(0), 2, 0) })
}

// requestBy is request with a way to notify.
func (r *rig) requestBy(notify func()) {
	r.Helper()
	sent := r.wires.MSI(1).Sent()
	r.d.SetInterrupts(true)
	r.d.Add([][]byte{{1, 2, 3}}, []int{3})
	if r.d.KickNeeded() {
		notify()
	}
	r.until("answer", func() bool { _, ok := r.d.Used(); return ok })
	r.until("interrupt", func() bool { return r.wires.MSI(1).Sent() > sent })
}

func (r *rig) until(what string, f func() bool) {
	r.Helper()
	for end := time.Now().Add(5 * time.Second); !f(); time.Sleep(50 * time.Microsecond) {
		if time.Now().After(end) {
			r.Fatalf("no %s", what)
		}
	}
}

// §4.1.2, §4.1.4: identity and structures.
func TestDiscovery(t *testing.T) {
	r := newRig(t, &virtiotest.Fake{Shared: []virtio.SharedMemory{{ID: 3, Size: 8 << 30}}})
	r.expect("ID", r.read(r.cfg, 4), 0x10441af4)
	r.expect("revision", r.read(r.cfg+8, 1), 1)
	r.expect("interrupt pin", r.read(r.cfg+0x3d, 1), 0)
	for kind, length := range map[byte]uint64{1: 56, 2: 8, 3: 1, 4: 16, 5: 0} {
		c, ok := r.caps[kind]
		if !ok || c.length < length || c.bar != 0 || c.offset%4 != 0 {
			t.Errorf("structure %d: %+v", kind, c)
		}
	}
	r.expect("notify_off_multiplier", r.read(r.cfg+r.caps[2].at+16, 4), 4)
	shm := r.caps[8]
	r.expect("shared memory ID", uint64(shm.id), 3)
	r.expect("its length", r.read(r.cfg+shm.at+20, 4)<<32|shm.length, 8<<30)
	r.expect("its cap_len", r.read(r.cfg+shm.at+2, 1), 24)
	base, size, ok := r.f.SharedMemory(3)
	if !ok || size != 8<<30 || uint64(base) != r.read(r.cfg+0x10+4*uint64(shm.bar), 8)&^15 || base%(8<<30) != 0 {
		t.Errorf("shared memory at %#x+%#x", base, size)
	}
	if base, _, _ := newRig(t, &virtiotest.Fake{Shared: []virtio.SharedMemory{{ID: 4, Size: 1 << 30}}}).f.SharedMemory(4); base != 1<<36+1<<34 {
		t.Errorf("shared memory with a chosen address is at %#x", base)
	}
	if _, _, ok := r.f.SharedMemory(0); ok {
		t.Error("a region that is none")
	}
}

// §4.1.4.3: the common configuration after reset.
func TestInitialState(t *testing.T) {
	r := newRig(t, new(virtiotest.Fake))
	for off, want := range map[uint64]uint64{16: 0xffff, 18: 2, 22: 0, 24: 64, 26: 0xffff, 28: 0, 30: 0, 56: 0, 58: 0} {
		r.expect("register", r.get(off, 2), want)
	}
	r.set(22, 2, 1)
	r.expect("queue_notify_off of queue 1", r.get(30, 2), 1)
	for _, sel := range []uint64{2, 100, 65535} {
		r.set(22, 2, sel)
		r.set(24, 2, 8)
		r.set(26, 2, 1)
		r.set(28, 2, 1)
		r.set(32, 8, 4096)
		r.expect("size of no queue", r.get(24, 2), 0)
		r.expect("vector of no queue", r.get(26, 2), 0xffff)
		r.expect("address of no queue", r.get(32, 8), 0)
		r.expect("enable of no queue", r.get(28, 2), 0)
	}
	r.set(0, 4, 2)
	r.expect("feature word 2", r.get(4, 4), 0)
}

func TestRequestsAndReset(t *testing.T) {
	r := newRig(t, new(virtiotest.Fake))
	for range 3 {
		r.start()
		for range 20 {
			r.request()
		}
		r.set(20, 1, 0)
		r.expect("status after reset", r.status(), 0)
		r.expect("vector after reset", r.get(16, 2), 0xffff)
		r.expect("queue_enable after reset", r.get(28, 2), 0)
	}
	if n := len(r.wires.Doorbells()); n != 0 {
		t.Errorf("%d doorbells are open after a reset", n)
	}
}

// The doorbell follows the BAR (hostile-guest.md rows 9 and 10).
func TestDoorbellBinding(t *testing.T) {
	r := newRig(t, new(virtiotest.Fake))
	if n := len(r.wires.Doorbells()); n != 0 {
		t.Errorf("%d doorbells before DRIVER_OK", n)
	}
	r.start()
	bells := r.wires.Doorbells()
	if len(bells) != 1 {
		t.Fatalf("%d doorbells for one enabled queue", len(bells))
	}
	bound := func(want uint64) {
		t.Helper()
		if a, ok := bells[0].Bound(); ok != (want != 0) || (ok && a != want) {
			t.Errorf("doorbell at %#x (%v), want %#x", a, ok, want)
		}
	}
	bound(r.notifyAddr(0))
	r.MMIOWrite(r.cfg+4, 2, 0)
	bound(0)
	r.MMIOWrite(r.cfg+4, 2, pci.CommandMemory)
	bound(r.notifyAddr(0))
	r.MMIOWrite(r.cfg+0x10, 4, 0xd000_0000)
	r.bar = 0xd000_0000
	bound(r.notifyAddr(0))
	r.request()
	r.MMIOWrite(r.cfg+0x10, 4, 0x1000) // over RAM
	bound(0)
	r.MMIOWrite(r.cfg+0x10, 4, 0xd000_0000)
	r.request()
	r.set(20, 1, 0)
	bound(0)
	r.start()
	r.host.Reset()
	if len(r.wires.Doorbells()) != 0 || r.dev.Activation() != nil {
		t.Error("the machine's reset does not reset the device")
	}
}

// A device that serves requests on the CPU's thread gets every notification there,
// wherever the BAR goes.
func TestInlineDoorbell(t *testing.T) {
	r := newRig(t, &virtiotest.Fake{Inline: true})
	r.start()
	r.MMIOWrite(r.cfg+4, 2, 0)
	r.MMIOWrite(r.cfg+4, 2, pci.CommandMemory)
	bells := r.wires.Doorbells()
	if len(bells) != 1 {
		t.Fatalf("%d doorbells for one enabled queue", len(bells))
	}
	if a, ok := bells[0].Bound(); ok {
		t.Errorf("doorbell at %#x", a)
	}
	r.request()
	r.set(20, 1, 0)
	if n := len(r.wires.Doorbells()); n != 0 {
		t.Errorf("%d doorbells are open after a reset", n)
	}
}

// §4.1.4, §4.1.4.4, §4.1.5.2: a device that serves inline prefers its port, where the
// value names the queue; the addresses in memory work as well.
func TestNotifyPort(t *testing.T) {
	r := newRig(t, &virtiotest.Fake{Inline: true})
	r.MMIOWrite(r.cfg+4, 2, pci.CommandMemory|pci.CommandIO)
	r.start()
	c := r.first[2]
	if c.bar != 1 || c.offset != 0 || c.length < 2 || r.caps[2].bar != 0 {
		t.Fatalf("preferred notification structure %+v, other one %+v", c, r.caps[2])
	}
	r.expect("notify_off_multiplier", r.read(r.cfg+c.at+16, 4), 0)
	port := uint16(r.f.BARAddress(1))
	r.requestBy(func() { r.PortOut(port, 2, 0) })
	r.request()
	at := r.cfg + r.caps[5].at
	r.MMIOWrite(at+4, 1, 1)
	r.MMIOWrite(at+8, 4, 0)
	r.MMIOWrite(at+12, 4, 2)
	r.requestBy(func() { r.MMIOWrite(at+16, 2, 0) })

	// hostile-guest.md row 1: every width, queues that there are not, and reads.
	for _, size := range []int{1, 2, 4} {
		for off := range uint16(4) {
			r.PortOut(port+off, size, 0xffffffff)
			r.PortOut(port+off, size, 1)
			r.PortIn(port+off, size)
		}
	}
	r.request()
}

// A device whose doorbells need not leave the guest has no port.
func TestNoNotifyPort(t *testing.T) {
	r := newRig(t, new(virtiotest.Fake))
	r.expect("BAR of the notifications", uint64(r.first[2].bar), 0)
	r.expect("BAR 1", r.read(r.cfg+0x14, 4), 0)
}

// §4.1.5.1.2.1: vectors, and NO_VECTOR for those that do not exist (CH #7918).
func TestVectors(t *testing.T) {
	r := newRig(t, new(virtiotest.Fake))
	for _, reg := range []uint64{16, 26} {
		for v, want := range map[uint64]uint64{0: 0, 2: 2, 3: 0xffff, 0xfffe: 0xffff, 0xffff: 0xffff} {
			r.set(reg, 2, v)
			r.expect("vector", r.get(reg, 2), want)
		}
	}
	r.start()
	r.dev.Activation().ConfigChanged()
	r.expect("configuration change messages", uint64(r.wires.MSI(0).Sent()), 1)
	r.expect("config_generation", r.get(21, 1), 1)
	r.set(16, 2, 0xffff)
	r.dev.Activation().ConfigChanged()
	r.expect("without a vector", uint64(r.wires.MSI(0).Sent()), 1)
	r.expect("ISR with MSI-X", r.read(r.bar+r.caps[3].offset, 1), 0)
}

// §4.1.4.5.1: the ISR status without MSI-X, cleared by reading.
func TestISR(t *testing.T) {
	r := newRig(t, new(virtiotest.Fake))
	r.start()
	r.MMIOWrite(r.cfg+0x40+2, 2, 0)
	r.dev.Activation().ConfigChanged()
	isr := r.bar + r.caps[3].offset
	r.MMIOWrite(isr, 1, 0xff)
	r.expect("ISR", r.read(isr, 1), 2)
	r.expect("ISR read again", r.read(isr, 1), 0)
	r.d.Add(nil, []int{1})
	r.MMIOWrite(r.notifyAddr(0), 2, 0)
	r.until("queue bit", func() bool { return r.read(isr, 1) == 1 })
}

// §4.1.4.9: the window in configuration space, good and hostile.
func TestConfigWindow(t *testing.T) {
	r := newRig(t, new(virtiotest.Fake))
	at := r.cfg + r.caps[5].at
	window := func(bar, off, length uint64) {
		r.MMIOWrite(at+4, 1, bar)
		r.MMIOWrite(at+8, 4, off)
		r.MMIOWrite(at+12, 4, length)
	}
	window(0, 20, 1)
	r.MMIOWrite(at+16, 4, 1)
	r.expect("status through the window", r.read(at+16, 4), 1)
	r.expect("status", r.status(), 1)
	window(0, 18, 2)
	r.expect("num_queues through the window", r.read(at+16, 2), 2)
	for _, c := range [][3]uint64{
		{1, 20, 1}, {255, 20, 1}, {0, 20, 0}, {0, 20, 3}, {0, 20, 8}, {0, 21, 2}, {0, 20, 0xffffffff},
		{0, 0x8000, 1}, {0, 0x7ffe, 4}, {0, 0xffffffff, 1}, {0, 0xfffffffc, 4},
	} {
		window(c[0], c[1], c[2])
		r.MMIOWrite(at+16, 4, 0)
		r.read(at+16, 4)
	}
	r.expect("status after hostile windows", r.status(), 1)
}

// hostile-guest.md row 1: every offset, width and alignment of BAR 0; parts of
// registers are not written, reads see the bytes that are there.
func TestAnyAccess(t *testing.T) {
	r := newRig(t, new(virtiotest.Fake))
	r.expect("num_queues, misaligned", r.get(17, 2), 0x02ff)
	r.expect("num_queues, high byte", r.get(19, 1), 0)
	r.expect("features and selects", r.get(0, 8)>>32, r.get(4, 4))
	r.set(22, 1, 1)
	r.expect("half of queue_select", r.get(22, 2), 0)
	for _, v := range []uint64{0, ^uint64(0), 0x8181818181818181} {
		for _, size := range []int{1, 2, 4, 8} {
			for off := uint64(0); off+uint64(size) <= 0x8000; off++ {
				if off%0x1000 > 0x80 && off%0x1000 < 0xff0 {
					continue
				}
				r.MMIOWrite(r.bar+off, size, v)
				r.read(r.bar+off, size)
			}
		}
	}
	r.set(20, 1, 0)
	r.start()
	r.request()
}

// CVE-2026-5747: nothing changes after DRIVER_OK.
func TestFrozenAfterDriverOK(t *testing.T) {
	r := newRig(t, new(virtiotest.Fake))
	r.start()
	for _, reg := range []uint64{4, 12, 24, 28, 32, 36, 40, 44, 48, 52} {
		size := 4
		if reg == 24 || reg == 28 {
			size = 2
		}
		before := r.get(reg, size)
		for _, v := range []uint64{0, 1, 2, 32, ^uint64(0)} {
			r.set(reg, size, v)
			r.expect("frozen register", r.get(reg, size), before)
		}
	}
	r.request()
}

func TestNoAllocations(t *testing.T) {
	r := newRig(t, new(virtiotest.Fake))
	r.start()
	if n := testing.AllocsPerRun(100, func() {
		r.MMIOWrite(r.notifyAddr(1), 2, 1)
		r.status()
		r.get(32, 8)
		r.read(r.bar+r.caps[4].offset, 8)
		r.dev.Activation().ConfigChanged()
		r.set(22, 2, 0)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestTooManyQueues(t *testing.T) {
	m := virtqtest.NewMemory(t, 1<<20)
	q := make([]uint16, 1025)
	if _, err := virtiopci.New("many", &virtiotest.Fake{Queues: q}, m.Memory, new(bustest.Wires), virtiopci.Options{}); err == nil {
		t.Error("1025 queues were accepted")
	}
	if _, err := virtiopci.New("shm", &virtiotest.Fake{Shared: []virtio.SharedMemory{{Size: 3}}}, m.Memory, new(bustest.Wires), virtiopci.Options{}); err == nil {
		t.Error("a shared memory region of 3 bytes was accepted")
	}
}

// FuzzRegisters drives random accesses to configuration space and BAR 0.
func FuzzRegisters(f *testing.F) {
	f.Add([]byte{0, 20, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := newRig(t, new(virtiotest.Fake))
		r.start()
		for ; len(in) >= 12; in = in[12:] {
			off, size := uint64(binary.LittleEndian.Uint16(in[1:])), 1<<(in[3]&3)
			v := binary.LittleEndian.Uint64(in[4:])
			switch in[0] & 7 {
			case 0, 1:
				r.MMIOWrite(r.bar+off&63, size, v)
			case 2:
				r.MMIOWrite(r.bar+off&0x7fff, size, v)
			case 3:
				r.read(r.bar+off&0x7fff, size)
			case 4:
				r.MMIOWrite(r.cfg+off&0xff, size, v)
			case 5:
				r.read(r.cfg+off&0xff, size)
			case 6:
				r.negotiate()
			case 7:
				r.set(20, 1, statusOK)
			}
		}
		r.host.Reset()
		r.MMIOWrite(r.cfg+4, 2, pci.CommandMemory)
		r.start()
		r.request()
		if r.dev.Misuse.Load() != 0 {
			t.Error("the device's contract was broken")
		}
	})
}
