package virtio_test

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/virtiotest"
	"github.com/gvmspawn/gvmspawn/virtio/virtq"
	"github.com/gvmspawn/gvmspawn/virtio/virtq/virtqtest"
)

const (
	ack    = virtio.StatusAcknowledge
	drv    = virtio.StatusDriver
	fok    = virtio.StatusFeaturesOK
	dok    = virtio.StatusDriverOK
	failed = virtio.StatusFailed
	needs  = virtio.StatusNeedsReset
)

// wires is a transport that counts.
type wires struct {
	bells   []*virtqtest.Bell
	fail    bool
	queue   [4]atomic.Int64
	config  atomic.Int64
	cleared atomic.Int64
}

func (w *wires) OpenBell(int) (virtq.Bell, error) {
	if w.fail {
		return nil, errors.New("no bells")
	}
	b := virtqtest.NewBell()
	w.bells = append(w.bells, b)
	return b, nil
}
func (w *wires) CloseBells()              {}
func (w *wires) QueueInterrupt(i int)     { w.queue[i].Add(1) }
func (w *wires) QueueInterruptFD(int) int { return -1 }
func (w *wires) ConfigInterrupt()         { w.config.Add(1) }
func (w *wires) Cleared()                 { w.cleared.Add(1) }

// rig is a core with a fake device and a driver.
type rig struct {
	*testing.T
	*virtio.Core
	dev  *virtiotest.Fake
	w    *wires
	mem  *virtqtest.Memory
	d    *virtqtest.Driver
	errs []error
}

func newRig(t *testing.T, dev *virtiotest.Fake) *rig {
	r := &rig{T: t, dev: dev, w: new(wires), mem: virtqtest.NewMemory(t, 1<<20)}
	r.Core = virtio.NewCore(dev, r.mem.Memory, r.w, 0, func(err error) { r.errs = append(r.errs, err) })
	t.Cleanup(r.Close)
	return r
}

// negotiate goes up to FEATURES_OK.
func (r *rig) negotiate() {
	r.SetStatus(ack)
	r.SetStatus(ack | drv)
	for sel := range uint32(2) {
		r.SetDriverFeatures(sel, r.DeviceFeatures(sel))
	}
	r.SetStatus(ack | drv | fok)
}

// start brings up queue 0 and sets DRIVER_OK.
func (r *rig) start() {
	r.Helper()
	r.negotiate()
	packed := r.Offered().Has(virtio.FRingPacked)
	size := uint16(16)
	if packed {
		size = 11
	}
	r.d = virtqtest.New(r.T, size, virtqtest.Options{Memory: r.mem, EventIdx: true, Indirect: true, Packed: packed, NoQueue: true})
	r.program(0, r.d.Config)
	r.SetStatus(ack | drv | fok | dok)
	if s := r.Status(); s != ack|drv|fok|dok {
		r.Fatalf("status %#x after DRIVER_OK: %v", s, r.errs)
	}
}

func (r *rig) program(i uint32, c virtq.Config) {
	r.SetRingSize(i, uint32(c.Size))
	for a, gpa := range map[virtio.Area]uint64{virtio.DescArea: uint64(c.Desc), virtio.DriverArea: uint64(c.Avail), virtio.DeviceArea: uint64(c.Used)} {
		r.SetRingAddress(i, a, false, uint32(gpa))
		r.SetRingAddress(i, a, true, uint32(gpa>>32))
	}
	r.EnableRing(i)
}

// request sends one through queue 0.
func (r *rig) request() {
	r.Helper()
	r.d.Add([][]byte{{1, 2, 3}}, []int{3})
	if r.d.KickNeeded() {
		r.Notify(0)
	}
	r.until("request", func() bool { _, ok := r.d.Used(); return ok })
}

func (r *rig) until(what string, f func() bool) {
	r.Helper()
	for end := time.Now().Add(5 * time.Second); !f(); time.Sleep(50 * time.Microsecond) {
		if time.Now().After(end) {
			r.Fatalf("%s: did not happen", what)
		}
	}
}

// §2.1, §3.1.1: every pair of status values, against the rules in words.
func TestStatusMachine(t *testing.T) {
	for _, c := range []struct{ old, write, want virtio.Status }{
		{0, ack, ack}, {0, ack | drv, ack | drv}, {ack, ack | drv, ack | drv},
		{0, drv, 0}, {0, fok, 0}, {0, dok, 0}, {0, ack | fok, 0}, {0, ack | drv | fok, 0},
		{ack, drv, ack}, // a bit cleared
		{ack | drv, ack, ack | drv},
		{ack | drv, ack | drv | fok, ack | drv | fok},
		{ack | drv, ack | drv | dok, ack | drv},       // DRIVER_OK without FEATURES_OK
		{ack | drv, ack | drv | fok | dok, ack | drv}, // FEATURES_OK must be re-read first
		{ack | drv | fok, ack | drv | fok | dok, ack | drv | fok | dok},
		{ack | drv | fok, ack | drv | dok, ack | drv | fok},
		{0, failed, failed}, {ack | drv, ack | drv | failed, ack | drv | failed},
		{ack | failed, ack | drv | failed, ack | failed}, // FAILED ends it
		{ack | drv | failed, 0, 0},
		{ack, ack | needs, ack}, // the device's bit
		{ack, ack | 16, ack}, {ack, ack | 32, ack},
		{ack | drv | fok, 0, 0},
	} {
		r := newRig(t, new(virtiotest.Fake))
		r.SetDriverFeatures(1, 1) // VERSION_1
		for _, bit := range []virtio.Status{ack, drv, fok, dok, failed} {
			if c.old&bit != 0 {
				r.SetStatus(r.Status() | bit)
			}
		}
		r.SetStatus(c.write)
		if got := r.Status(); got != c.want {
			t.Errorf("status %#x, write %#x: got %#x, want %#x", c.old, c.write, got, c.want)
		}
	}
}

// §2.2, §6: what FEATURES_OK accepts.
func TestFeatures(t *testing.T) {
	for _, c := range []struct {
		name   string
		accept virtio.Features
		ok     bool
	}{
		{"VERSION_1", virtio.Bits(virtio.FVersion1), true},
		{"all offered", virtio.Bits(virtio.FVersion1, virtio.FRingEventIdx, virtio.FRingIndirectDesc, virtiotest.FakeFeature), true},
		{"nothing", 0, false},
		{"without VERSION_1", virtio.Bits(virtiotest.FakeFeature), false},
		{"not offered", virtio.Bits(virtio.FVersion1, 0), false},
		{"ACCESS_PLATFORM", virtio.Bits(virtio.FVersion1, virtio.FAccessPlatform), false},
	} {
		r := newRig(t, new(virtiotest.Fake))
		r.SetStatus(ack)
		r.SetStatus(ack | drv)
		r.SetDriverFeatures(0, uint32(c.accept))
		r.SetDriverFeatures(1, uint32(c.accept>>32))
		r.SetDriverFeatures(2, 0xffffffff)
		r.SetStatus(ack | drv | fok)
		if got := r.Status()&fok != 0; got != c.ok {
			t.Errorf("%s: FEATURES_OK %v", c.name, got)
		}
		if !c.ok {
			continue
		}
		r.SetDriverFeatures(0, 0) // too late
		if got := r.DriverFeatures(0); got != uint32(c.accept) {
			t.Errorf("%s: features changed to %#x after FEATURES_OK", c.name, got)
		}
	}
	r := newRig(t, new(virtiotest.Fake))
	if r.DeviceFeatures(2) != 0 || r.DeviceFeatures(0xffffffff) != 0 || r.DriverFeatures(2) != 0 {
		t.Error("feature words beyond 1 are not zero")
	}
}

// A device cannot offer bits that belong to ring or transport.
func TestReservedFeatures(t *testing.T) {
	r := newRig(t, new(virtiotest.Fake))
	if got, want := r.Offered(), virtio.Bits(virtiotest.FakeFeature, virtio.FVersion1, virtio.FRingEventIdx, virtio.FRingIndirectDesc); got != want {
		t.Errorf("offered %#x, want %#x", got, want)
	}
}

func TestRequests(t *testing.T) {
	r := newRig(t, new(virtiotest.Fake))
	r.start()
	for range 100 {
		r.request()
	}
	a := r.dev.Activation()
	if a.Queues[1] != nil || !a.Features.Has(virtiotest.FakeFeature) {
		t.Errorf("queue 1 is %v, features %#x", a.Queues[1], a.Features)
	}
}

// With RING_PACKED negotiated the ring is packed and its size any number.
func TestPacked(t *testing.T) {
	r := newRig(t, new(virtiotest.Fake))
	r.Core = virtio.NewCore(r.dev, r.mem.Memory, r.w, virtio.Bits(virtio.FRingPacked), nil)
	t.Cleanup(r.Core.Close)
	r.start()
	if got, _ := r.Ring(0); got.Size != 11 {
		t.Errorf("size %d", got.Size)
	}
	for range 100 {
		r.request()
	}
}

// CVE-2026-5747 and hostile-guest.md rows 3 to 5 and 7: queue registers take
// effect only between FEATURES_OK and DRIVER_OK, while the queue is disabled,
// and never a size that the device cannot have.
func TestQueueRegisters(t *testing.T) {
	r := newRig(t, new(virtiotest.Fake))
	change := func() {
		r.SetRingSize(0, 8)
		r.SetRingAddress(0, virtio.DescArea, false, 0x5000)
		r.SetRingAddress(0, virtio.DeviceArea, true, 1)
		r.EnableRing(0)
	}
	unchanged := func(when string, want virtio.Ring) {
		t.Helper()
		if got, _ := r.Ring(0); got != want {
			t.Errorf("%s: ring became %+v", when, got)
		}
	}
	initial := virtio.Ring{Max: 64, Size: 64}
	change()
	unchanged("before the driver came", initial)
	r.SetStatus(ack)
	r.SetStatus(ack | drv)
	change()
	unchanged("before FEATURES_OK", initial)
	r.negotiate()
	for _, size := range []uint32{0, 3, 65, 128, 65535, 0x10000, 0xffffffff} {
		r.SetRingSize(0, size)
	}
	unchanged("impossible sizes", initial)
	change()
	want := virtio.Ring{Max: 64, Size: 8, Enabled: true, Desc: 0x5000, Used: 1 << 32}
	unchanged("set up", want)
	r.SetRingSize(0, 16)
	r.SetRingAddress(0, virtio.DescArea, true, 7)
	unchanged("enabled", want)
	r.DisableRing(0)
	want.Enabled = false
	unchanged("disabled", want)
	r.SetStatus(0)
	r.start()
	want, _ = r.Ring(0)
	change()
	r.DisableRing(0)
	unchanged("after DRIVER_OK", want)
	r.request()
}

// hostile-guest.md row 5: two queues on one ring get what the driver wrote once
// or twice, and the device stays within its contract; after a reset it is well.
func TestSharedRing(t *testing.T) {
	r := newRig(t, new(virtiotest.Fake))
	r.negotiate()
	r.d = virtqtest.New(r.T, 16, virtqtest.Options{Memory: r.mem, EventIdx: true, Indirect: true, NoQueue: true})
	for i := range uint32(2) {
		r.program(i, r.d.Config)
	}
	r.SetStatus(ack | drv | fok | dok)
	for range 100 {
		r.d.Add([][]byte{{1, 2, 3}}, []int{3})
		r.Notify(0)
		r.Notify(1)
		for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			if _, ok := r.d.Used(); ok || r.Status()&needs != 0 {
				break
			}
		}
		if r.Status()&needs != 0 {
			break
		}
	}
	if n := r.dev.Misuse.Load(); n != 0 {
		t.Errorf("the device's contract was broken %d times", n)
	}
	r.SetStatus(0)
	r.start()
	r.request()
}

// hostile-guest.md rows 2 and 8: queues that do not exist.
func TestQueueIndex(t *testing.T) {
	r := newRig(t, new(virtiotest.Fake))
	r.negotiate()
	for _, i := range []uint32{2, 255, 65535, 1 << 31, 0xffffffff} {
		r.SetRingSize(i, 8)
		r.SetRingAddress(i, virtio.DescArea, false, 1)
		r.EnableRing(i)
		r.DisableRing(i)
		r.Notify(i)
		if _, ok := r.Ring(i); ok {
			t.Errorf("queue %d exists", i)
		}
	}
	r.Notify(0) // before DRIVER_OK
	r.SetStatus(0)
	r.start()
	for _, i := range []uint32{1, 2, 255, 0xffffffff} {
		r.Notify(i)
	}
	r.request()
	r.SetStatus(0)
	r.Notify(0) // after a reset
}

// hostile-guest.md row 4: bad queue addresses make the device need a reset
// when it would start, and §2.1.2 has it tell the driver.
func TestBadQueueAddress(t *testing.T) {
	for _, c := range []virtq.Config{
		{Desc: 0x1008, Avail: 0x2000, Used: 0x3000}, {Desc: 0x1000, Avail: 0x2001, Used: 0x3000},
		{Desc: 0x1000, Avail: 0x2000, Used: 0x3002}, {Desc: 1 << 20, Avail: 0x2000, Used: 0x3000},
		{Desc: 1<<20 - 16, Avail: 0x2000, Used: 0x3000}, {Desc: 1<<64 - 16, Avail: 0x2000, Used: 0x3000},
		{Desc: 0x1000, Avail: 1<<64 - 8, Used: 0x3000}, {Desc: 0x1000, Avail: 0x2000, Used: 0xfee00000},
	} {
		r := newRig(t, new(virtiotest.Fake))
		r.negotiate()
		c.Size = 64
		r.program(1, c)
		r.SetStatus(ack | drv | fok | dok)
		if r.Status()&needs == 0 || r.w.config.Load() != 1 || r.dev.Activations.Load() != 0 || len(r.errs) != 1 {
			t.Errorf("%#x %#x %#x: status %#x, %d notifications, %d activations, log %v",
				c.Desc, c.Avail, c.Used, r.Status(), r.w.config.Load(), r.dev.Activations.Load(), r.errs)
		}
		r.SetStatus(0)
		r.start()
		r.request()
	}
}

// A device that fails to start, or a host without bells: CH #8295.
func TestFailedActivation(t *testing.T) {
	dev := &virtiotest.Fake{ActivateError: errors.New("no disk")}
	r := newRig(t, dev)
	r.negotiate()
	r.SetStatus(ack | drv | fok | dok)
	if r.Status() != ack|drv|fok|dok|needs || r.w.config.Load() != 1 || len(r.errs) != 1 {
		t.Errorf("status %#x, %d notifications, log %v", r.Status(), r.w.config.Load(), r.errs)
	}
	r.SetStatus(0)
	dev.ActivateError = nil
	r.w.fail = true
	r.negotiate()
	r.program(0, virtq.Config{Size: 8, Desc: 0x1000, Avail: 0x2000, Used: 0x3000})
	r.SetStatus(ack | drv | fok | dok)
	if r.Status()&needs == 0 {
		t.Error("a device without bells runs")
	}
	r.w.fail = false
	r.SetStatus(0)
	r.start()
	r.request()
}

// §2.1.2: a broken ring sets DEVICE_NEEDS_RESET, sends one configuration change
// notification, and a reset heals it.
func TestNeedsReset(t *testing.T) {
	r := newRig(t, new(virtiotest.Fake))
	r.start()
	r.d.Split.SetAvailIdx(1000)
	r.Notify(0)
	r.until("NEEDS_RESET", func() bool { return r.Status()&needs != 0 })
	r.until("its notification", func() bool { return r.w.config.Load() == 1 })
	r.dev.Activation().NeedsReset()
	r.SetStatus(ack | drv | fok | dok | needs) // as Linux writes it back
	if r.w.config.Load() != 1 || r.Status()&needs == 0 {
		t.Errorf("%d notifications, status %#x", r.w.config.Load(), r.Status())
	}
	old := r.dev.Activation()
	r.SetStatus(0)
	old.NeedsReset() // from a past life
	old.ConfigChanged()
	if r.Status() != 0 || r.w.config.Load() != 1 {
		t.Errorf("status %#x, %d notifications after a reset", r.Status(), r.w.config.Load())
	}
	r.start()
	r.request()
}

// §2.5.1: the generation changes with the configuration.
func TestConfigSpace(t *testing.T) {
	r := newRig(t, new(virtiotest.Fake))
	r.WriteConfig(0, 4, 0x11111111) // nobody is there yet
	if got := r.ReadConfig(0, 4); got != 0 {
		t.Errorf("config %#x", got)
	}
	r.start()
	r.WriteConfig(2, 4, 0x11223344)
	r.WriteConfig(14, 8, ^uint64(0))
	if got := r.ReadConfig(0, 8); got != 0x112233440000 {
		t.Errorf("config %#x", got)
	}
	if got := r.ReadConfig(12, 8); got != 0xffff0000 {
		t.Errorf("end of config %#x", got)
	}
	if got := r.ReadConfig(1<<63, 8); got != 0 {
		t.Errorf("beyond config %#x", got)
	}
	g := r.Generation()
	r.dev.Activation().ConfigChanged()
	if r.Generation() == g || r.w.config.Load() != 1 {
		t.Errorf("generation %d, then %d; %d notifications", g, r.Generation(), r.w.config.Load())
	}
	if n := testing.AllocsPerRun(100, func() { r.ReadConfig(0, 4); r.WriteConfig(0, 4, 1); r.Notify(0) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// §2.4.1, §4.1.4.3.2: a slow reset holds the CPU only a moment, the status stays
// non-zero until it is done, and nothing is accepted meanwhile.
func TestSlowReset(t *testing.T) {
	dev := &virtiotest.Fake{HoldReset: make(chan struct{})}
	r := newRig(t, dev)
	r.start()
	begin := time.Now()
	r.SetStatus(0)
	if d := time.Since(begin); d > 2*time.Second {
		t.Errorf("the CPU was held for %v", d)
	}
	r.SetStatus(ack)
	r.SetDriverFeatures(0, 0)
	r.WriteConfig(0, 4, 1)
	r.SetRingSize(0, 2)
	r.EnableRing(1)
	r.Notify(0)
	if r.Status() != ack|drv|fok|dok {
		t.Errorf("status %#x during the reset", r.Status())
	}
	close(dev.HoldReset)
	r.until("end of the reset", func() bool { return r.Status() == 0 })
	if dev.Resets.Load() != 1 {
		t.Errorf("%d resets", dev.Resets.Load())
	}
	r.start()
	r.request()
}

// hostile-guest.md row 6: a storm of resets and lives from one CPU, kicks,
// writes and reads from others.
func TestResetStorm(t *testing.T) {
	r := newRig(t, new(virtiotest.Fake))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				r.Notify(uint32(n % 3))
				switch i {
				case 0:
					r.Status()
					r.Ring(0)
					r.ReadConfig(0, 8)
				case 1:
					r.SetRingSize(0, 8)
					r.WriteConfig(0, 4, 1)
					r.SetStatus(ack | drv | fok | dok)
				case 2:
					if n%50 == 0 {
						r.SetStatus(0)
					}
				}
			}
		})
	}
	c := virtq.Config{Size: 8, Desc: 0x1000, Avail: 0x2000, Used: 0x3000}
	for range 500 {
		r.negotiate()
		r.program(0, c)
		r.SetStatus(ack | drv | fok | dok)
		r.SetStatus(0)
	}
	close(stop)
	wg.Wait()
	for range 100_000 {
		r.SetStatus(0)
	}
	if n := r.dev.Misuse.Load(); n != 0 {
		t.Errorf("the device's contract was broken %d times", n)
	}
	r.start()
	r.request()
	for _, b := range r.w.bells[:len(r.w.bells)-1] {
		if !b.Closed() {
			t.Fatal("a bell of a past life is open")
		}
	}
}

// Close during a reset, and what comes after it.
func TestClose(t *testing.T) {
	dev := &virtiotest.Fake{HoldReset: make(chan struct{})}
	r := newRig(t, dev)
	r.start()
	r.SetStatus(0)
	go func() {
		time.Sleep(10 * time.Millisecond)
		close(dev.HoldReset)
	}()
	r.Close()
	r.SetStatus(ack)
	r.SetStatus(0)
	r.Close()
	if r.Status() != 0 || dev.Activation() != nil {
		t.Errorf("status %#x after Close", r.Status())
	}
}
