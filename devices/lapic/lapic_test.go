package lapic

import (
	"sync"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// clock is time by hand.
type clock struct {
	ns     uint64
	timers []*fakeTimer
}

type fakeTimer struct {
	at uint64
	f  func()
}

func (c *clock) Now() uint64 { return c.ns }
func (c *clock) NewTimer(f func()) bus.Timer {
	t := &fakeTimer{bus.Never, f}
	c.timers = append(c.timers, t)
	return t
}
func (t *fakeTimer) Arm(at uint64) { t.at = at }

// advance lets time pass and returns how many timers expired.
func (c *clock) advance(d uint64) (n int) {
	end := c.ns + d
	for _, t := range c.timers {
		for t.at <= end {
			c.ns = max(c.ns, t.at)
			t.at = bus.Never
			n++
			t.f()
		}
	}
	c.ns = end
	return n
}

type rig struct {
	*Cluster
	clock clock
	woken []int
	eois  []uint8
}

// tscOffset is how far the fake TSC is ahead of the clock.
const tscOffset = 1000

func newRig(t testing.TB, ids ...uint32) *rig {
	r := &rig{}
	var err error
	r.Cluster, err = NewCluster(Config{
		IDs: ids, Clock: &r.clock,
		FromTSC: func(_ int, tsc uint64) uint64 { return tsc - min(tsc, tscOffset) },
		Wake:    func(cpu int) { r.woken = append(r.woken, cpu) },
		EOI:     func(v uint8) { r.eois = append(r.eois, v) },
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range r.apics {
		a.Write(regSVR, 4, 0x1ff)
	}
	return r
}

func (r *rig) x2(t testing.TB) *rig {
	for _, a := range r.apics {
		if !a.WriteMSR(MSRAPICBase, a.base.Load()|baseEXTD) {
			t.Fatal("x2APIC refused")
		}
	}
	return r
}

// got returns each CPU's pending vectors, highest first, and takes them.
func (r *rig) got() (all [][]uint8) {
	for _, a := range r.apics {
		var vs []uint8
		for {
			v, ok := a.Interrupt()
			if !ok {
				break
			}
			vs = append(vs, v)
			a.irr.del(v)
		}
		all = append(all, vs)
	}
	return all
}

// reached returns the CPUs with anything pending as a bit mask.
func (r *rig) reached() (mask int) {
	for cpu, vs := range r.got() {
		if len(vs) > 0 {
			mask |= 1 << cpu
		}
	}
	return mask
}

// TestReset: §11.4.7.1.
func TestReset(t *testing.T) {
	c, err := NewCluster(Config{IDs: []uint32{0, 1}, Clock: &clock{}})
	if err != nil {
		t.Fatal(err)
	}
	a := c.APIC(1)
	for reg, want := range map[uint64]uint64{
		regID: 1 << 24, regTPR: 0, regLDR: 0, regDFR: 0xffff_ffff, regSVR: 0xff, regLVT: 0x10000, 0x350: 0x10000, regLVTEnd: 0x10000, regTICR: 0, regDCR: 0,
	} {
		if got := a.Read(reg, 4); got != want {
			t.Errorf("register %#x: %#x, want %#x", reg, got, want)
		}
	}
	if v := a.Read(regVersion, 4); v&0xff < 0x10 || v&0xff > 0x15 || v>>16&0xff != 5 {
		t.Errorf("version %#x", v)
	}
	b0, _ := c.APIC(0).ReadMSR(MSRAPICBase)
	b1, _ := a.ReadMSR(MSRAPICBase)
	if b0 != 0xfee00900 || b1 != 0xfee00800 {
		t.Errorf("base %#x and %#x", b0, b1)
	}
	for _, ids := range [][]uint32{{0, 0}, {0xff}, {0xffff_ffff}} {
		if _, err := NewCluster(Config{IDs: ids, Clock: &clock{}}); err == nil {
			t.Errorf("IDs %v accepted", ids)
		}
	}
}

// TestPriority: §11.8.3.1, classes of 16 vectors against TPR and what is in service.
func TestPriority(t *testing.T) {
	r := newRig(t, 0)
	a := r.APIC(0)
	a.accept(0x31, false)
	a.accept(0x35, false)
	a.accept(0x80, false)
	take := func(want uint8) {
		t.Helper()
		v, ok := a.Interrupt()
		if !ok || v != want {
			t.Fatalf("got %#x %v, want %#x", v, ok, want)
		}
		a.Ack(v)
	}
	none := func() {
		t.Helper()
		if v, ok := a.Interrupt(); ok || a.Events() != 0 {
			t.Fatalf("got %#x, events %#x, want none", v, a.Events())
		}
	}
	a.SetTPR(0x80)
	none()
	a.SetTPR(0x7f)
	take(0x80)
	if a.Read(regPPR, 4) != 0x80 {
		t.Errorf("PPR %#x in service", a.Read(regPPR, 4))
	}
	none()
	a.Write(regEOI, 4, 0)
	if a.Read(regPPR, 4) != 0x7f {
		t.Errorf("PPR %#x after EOI", a.Read(regPPR, 4))
	}
	none()
	a.SetTPR(0x2f)
	if a.Events()&EventInterrupt == 0 {
		t.Error("no event though TPR fell below a request")
	}
	take(0x35)
	none() // the same class
	a.Write(regEOI, 4, 0)
	take(0x31)
	a.accept(0x42, false)
	take(0x42) // nested
	a.Write(regEOI, 4, 0)
	a.Write(regEOI, 4, 0)
	a.Write(regEOI, 4, 0) // one too many
	none()
}

// TestLevelEOI: §11.8.5, the broadcast for level-triggered interrupts and its
// suppression; TMR shows the trigger.
func TestLevelEOI(t *testing.T) {
	r := newRig(t, 0)
	a := r.APIC(0)
	run := func(level bool) {
		a.accept(0x51, level)
		a.Ack(0x51)
		if got := a.Read(regTMR+0x20, 4)>>17&1 == 1; got != level {
			t.Errorf("TMR %v, trigger %v", got, level)
		}
		a.Write(regEOI, 4, 0)
	}
	run(false)
	if len(r.eois) != 0 {
		t.Error("EOI of an edge was broadcast")
	}
	run(true)
	if len(r.eois) != 1 || r.eois[0] != 0x51 {
		t.Errorf("EOIs %v", r.eois)
	}
	a.Write(regSVR, 4, 0x11ff)
	run(true)
	if len(r.eois) != 1 {
		t.Error("EOI broadcast though suppressed")
	}
}

// TestDestinations: §11.6.2 and §11.12.10, who gets an IPI.
func TestDestinations(t *testing.T) {
	const logical = 1 << 11
	const self, all, others = 1 << 18, 2 << 18, 3 << 18
	x := newRig(t, 0, 1, 2, 0x13)
	for i, a := range x.apics {
		a.Write(regLDR, 4, 1<<(24+i))
	}
	cl := newRig(t, 0, 1, 2, 0x13)
	for i, a := range cl.apics {
		a.Write(regDFR, 4, 0)
		a.Write(regLDR, 4, []uint64{0x11, 0x12, 0x21, 0x22}[i]<<24)
	}
	x2 := newRig(t, 0, 1, 2, 0x13).x2(t)
	wide := newRig(t, 0, 1, 0x102, 0x113).x2(t)
	for _, c := range []struct {
		name string
		r    *rig
		dest uint64
		low  uint64
		want int
	}{
		{"physical", x, 2, 0, 1 << 2},
		{"physical, nobody", x, 9, 0, 0},
		{"physical broadcast", x, 0xff, 0, 0xf},
		{"flat", x, 0x0a, logical, 0xa},
		{"flat broadcast", x, 0xff, logical, 0xf},
		{"flat nobody", x, 0, logical, 0},
		{"cluster", cl, 0x13, logical, 0x3},
		{"cluster 2", cl, 0x22, logical, 0x8},
		{"cluster broadcast", cl, 0xff, logical, 0xf},
		{"lowest priority", x, 0x0c, logical | 1<<8, 1 << 2},
		{"self", x, 0, self, 1},
		{"all", x, 0, all, 0xf},
		{"all but self", x, 0, others, 0xe},
		{"x2 physical", x2, 0x13, 0, 1 << 3},
		{"x2 physical broadcast", x2, 0xffff_ffff, 0, 0xf},
		{"x2 0xff is an ID", x2, 0xff, 0, 0},
		{"x2 logical", x2, 0x0005, logical, 0x5},
		{"x2 logical, cluster 1", x2, 0x1_0008, logical, 0x8},
		{"x2 logical broadcast", x2, 0xffff_ffff, logical, 0xf},
		{"x2 self", x2, 0, self, 1},
		{"x2 all but self", x2, 0, others, 0xe},
		{"x2 wide ID", wide, 0x102, 0, 1 << 2},
		{"x2 wide cluster", wide, 0x11_0008, logical, 1 << 3},
		{"x2 wide lowest", wide, 0xffff_ffff, logical | 1<<8, 1},
	} {
		a := c.r.APIC(0)
		if a.x2apic() {
			if !a.WriteMSR(0x830, c.dest<<32|c.low|0x4040) {
				t.Errorf("%s: #GP", c.name)
			}
		} else {
			a.Write(regICRHigh, 4, c.dest<<24)
			a.Write(regICRLow, 4, c.low|0x4040)
		}
		if got := c.r.reached(); got != c.want {
			t.Errorf("%s: reached %#x, want %#x", c.name, got, c.want)
		}
	}
}

// TestLowestPriority: §11.6.2.4, the target with the lowest priority.
func TestLowestPriority(t *testing.T) {
	r := newRig(t, 0, 1, 2)
	r.APIC(0).SetTPR(0x20)
	r.APIC(1).SetTPR(0x10)
	r.APIC(2).Write(regSVR, 4, 0xff) // disabled
	r.Deliver(0xfeeff000, 0x4140)
	if got := r.reached(); got != 2 {
		t.Errorf("reached %#x", got)
	}
}

// TestMSI: §11.11, address and data.
func TestMSI(t *testing.T) {
	r := newRig(t, 0, 1, 2)
	for i, a := range r.apics {
		a.Write(regLDR, 4, 1<<(24+i))
	}
	for _, c := range []struct {
		name string
		addr uint64
		data uint32
		ok   bool
		want int
	}{
		{"physical", 0xfee01000, 0x41, true, 2},
		{"logical", 0xfee05004, 0x41, true, 5},
		{"logical, one of", 0xfee0600c, 0x41, true, 2},
		{"broadcast", 0xfeeff000, 0x41, true, 7},
		{"outside", 0xfed01000, 0x41, false, 0},
		{"above 4 GiB", 0x1_fee01000, 0x41, false, 0},
		{"illegal vector", 0xfee01000, 0x0f, true, 0},
		{"start-up is reserved", 0xfee01000, 0x641, true, 0},
		{"reserved mode", 0xfee01000, 0x341, true, 0},
	} {
		if ok := r.Deliver(c.addr, c.data); ok != c.ok {
			t.Errorf("%s: accepted %v", c.name, ok)
		}
		if got := r.reached(); got != c.want {
			t.Errorf("%s: reached %#x, want %#x", c.name, got, c.want)
		}
		for i, a := range r.apics {
			if e := a.Events(); e != 0 {
				t.Errorf("%s: CPU %d has events %#x", c.name, i, e)
			}
		}
	}
	// Level-triggered: the TMR is set, so that the EOI is broadcast.
	r.Deliver(0xfee00000, 0xc042)
	r.APIC(0).Ack(0x42)
	r.APIC(0).Write(regEOI, 4, 0)
	if len(r.eois) != 1 {
		t.Error("no EOI of a level-triggered message")
	}
}

// TestSpecialIPIs: §11.6.1, NMI, SMI, INIT and SIPI.
func TestSpecialIPIs(t *testing.T) {
	r := newRig(t, 0, 1)
	a, b := r.APIC(0), r.APIC(1)
	send := func(low uint64) {
		a.Write(regICRHigh, 4, 1<<24)
		a.Write(regICRLow, 4, low)
	}
	b.Write(regTPR, 4, 0x10)
	send(0x4400)
	send(0x4200)
	if b.Events() != EventNMI|EventSMI || !b.Take(EventNMI) || b.Take(EventNMI) || !b.Take(EventSMI) {
		t.Errorf("events %#x", b.Events())
	}
	send(0x0612) // SIPI
	if b.Events() != EventSIPI || b.SIPIVector() != 0x12 {
		t.Errorf("events %#x, vector %#x", b.Events(), b.SIPIVector())
	}
	send(0x4500)
	if b.Events() != EventINIT {
		t.Errorf("events %#x after INIT: an older SIPI counts", b.Events())
	}
	send(0x8500) // level de-assert
	b.INIT()
	if b.Events() != 0 || b.TPR() != 0 || b.Read(regSVR, 4) != 0xff {
		t.Error("INIT did not reset the APIC")
	}
	if a.Events() != 0 {
		t.Errorf("the sender has events %#x", a.Events())
	}
	n := len(r.woken)
	send(0x4400)
	send(0x4400)
	if len(r.woken) != n+1 || r.woken[n] != 1 {
		t.Errorf("woken %v", r.woken[n:])
	}
	// Table 11-3: shorthands that are not allowed do nothing.
	b.Take(EventNMI)
	for _, low := range []uint64{0x44400, 0x84400, 0x44500, 0x84600, 0x4300, 0x4700} {
		send(low)
	}
	if a.Events()|b.Events() != 0 {
		t.Error("invalid combination was sent")
	}
}

// TestDisabled: §11.4.7.2, a disabled APIC takes NMI, INIT and SIPI only, and
// its LVT is masked.
func TestDisabled(t *testing.T) {
	r := newRig(t, 0, 1)
	b := r.APIC(1)
	b.Write(regLVT, 4, 0x20)
	b.Write(regSVR, 4, 0xff)
	if b.Read(regLVT, 4) != 0x10020 {
		t.Error("LVT is not masked")
	}
	b.Write(regLVT, 4, 0x20)
	if b.Read(regLVT, 4) != 0x10020 {
		t.Error("LVT was unmasked while disabled")
	}
	r.Deliver(0xfee01000, 0x41)
	r.Deliver(0xfee01000, 0x400)
	if b.Events() != EventNMI {
		t.Errorf("events %#x", b.Events())
	}
}

// TestErrors: §11.5.3.
func TestErrors(t *testing.T) {
	r := newRig(t, 0)
	a := r.APIC(0)
	a.Write(regLVTEnd, 4, 0xfe)
	a.Write(regICRLow, 4, 0x4000) // vector 0
	if a.Read(regESR, 4) != 0 {
		t.Error("ESR shows errors before it is written")
	}
	a.Write(regESR, 4, 0)
	if a.Read(regESR, 4) != esrSendIllegal {
		t.Errorf("ESR %#x", a.Read(regESR, 4))
	}
	if v, ok := a.Interrupt(); !ok || v != 0xfe {
		t.Error("no error interrupt")
	}
	a.Read(0x3b0, 4)
	a.accept(3, false)
	a.Write(regESR, 4, 0)
	if a.Read(regESR, 4) != esrIllegalAddress|esrReceiveIllegal {
		t.Errorf("ESR %#x", a.Read(regESR, 4))
	}
	a.Write(regESR, 4, 0)
	if a.Read(regESR, 4) != 0 {
		t.Error("ESR stays")
	}
	a.Write(regLVTEnd, 4, 0) // an illegal vector for the error itself
	a.Read(0x3b0, 4)
}

// TestPins: §11.5.1, the 8259 on LINT0 and NMI on LINT1.
func TestPins(t *testing.T) {
	r := newRig(t, 0)
	a := r.APIC(0)
	a.SetPin(0, true)
	if a.Events() != 0 {
		t.Error("a masked pin did something")
	}
	a.Write(0x350, 4, 0x700)
	if a.Events() != EventExtINT {
		t.Errorf("events %#x, want ExtINT", a.Events())
	}
	a.SetPin(0, false)
	if a.Events() != 0 {
		t.Error("ExtINT stays without a request")
	}
	a.Write(0x360, 4, 0x400)
	a.SetPin(1, true)
	a.SetPin(1, true)
	if !a.Take(EventNMI) {
		t.Error("no NMI")
	}
	a.SetPin(1, false)
	// §11.4.3: a disabled APIC connects the pins to INTR and NMI.
	a.WriteMSR(MSRAPICBase, 0xfee00100)
	a.SetPin(0, true)
	a.SetPin(1, true)
	if a.Events() != EventExtINT|EventNMI {
		t.Errorf("events %#x without APIC", a.Events())
	}
	a.Reset()
	a.SetPin(0, false)
	a.SetPin(1, false)
	a.Write(regSVR, 4, 0x1ff)
	a.Write(0x360, 4, 0x8030) // fixed, level
	a.SetPin(1, true)
	a.Ack(0x30)
	a.Write(regEOI, 4, 0)
	if v, ok := a.Interrupt(); !ok || v != 0x30 {
		t.Error("a pin that is still high does not interrupt again")
	}
}

// TestModes: §11.12.5, the state machine of IA32_APIC_BASE.
func TestModes(t *testing.T) {
	const addr = 0xfee00000
	const off, x, x2, bad = addr, addr | baseEN, addr | baseEN | baseEXTD, addr | baseEXTD
	for _, c := range []struct {
		from, to uint64
		ok       bool
	}{
		{off, off, true}, {off, x, true}, {off, x2, false}, {off, bad, false},
		{x, off, true}, {x, x, true}, {x, x2, true}, {x, bad, false},
		{x2, off, true}, {x2, x, false}, {x2, x2, true}, {x2, bad, false},
		{x, x | 1, false}, {x, x | 1<<9, false}, {x, x | 1<<60, false},
	} {
		r := newRig(t, 0, 0x25)
		a := r.APIC(1)
		if c.from == off {
			a.WriteMSR(MSRAPICBase, off)
		} else if c.from == x2 {
			r.x2(t)
		}
		if ok := a.WriteMSR(MSRAPICBase, c.to); ok != c.ok {
			t.Errorf("%#x to %#x: %v", c.from, c.to, ok)
		}
		got, _ := a.ReadMSR(MSRAPICBase)
		if want := map[bool]uint64{true: c.to, false: c.from}[c.ok]; got != want {
			t.Errorf("%#x to %#x: base %#x", c.from, c.to, got)
		}
		_, mmio := a.MMIOBase()
		if mmio != (got&(baseEN|baseEXTD) == baseEN) {
			t.Errorf("base %#x: MMIO %v", got, mmio)
		}
		if id, ok := a.ReadMSR(0x802); ok != (got&baseEXTD != 0) || ok && id != 0x25 {
			t.Errorf("base %#x: x2APIC ID %#x, %v", got, id, ok)
		}
	}
	a := newRig(t, 0x25).x2(t).APIC(0)
	if v, ok := a.ReadMSR(0x80d); !ok || v != 0x2_0020 {
		t.Errorf("x2APIC LDR %#x", v)
	}
	if a.Read(regID, 4) != 0xffff_ffff {
		t.Error("the page is there in x2APIC mode")
	}
}

// TestX2Registers: table 11-6 and §11.12.1.3, what raises #GP.
func TestX2Registers(t *testing.T) {
	a := newRig(t, 0).x2(t).APIC(0)
	readable := map[uint32]bool{0x802: true, 0x803: true, 0x808: true, 0x80a: true, 0x80d: true, 0x80f: true, 0x828: true, 0x830: true, 0x838: true, 0x839: true, 0x83e: true}
	writable := map[uint32]bool{0x808: true, 0x80b: true, 0x80f: true, 0x828: true, 0x830: true, 0x838: true, 0x83e: true, 0x83f: true}
	for m := uint32(0x810); m < 0x828; m++ {
		readable[m] = true
	}
	for m := uint32(0x832); m < 0x838; m++ {
		readable[m], writable[m] = true, true
	}
	for m := uint32(MSRX2APICFirst); m <= MSRX2APICLast; m++ {
		if _, ok := a.ReadMSR(m); ok != readable[m] {
			t.Errorf("read %#x: %v", m, ok)
		}
		if ok := a.WriteMSR(m, 0); ok != writable[m] {
			t.Errorf("write %#x: %v", m, ok)
		}
		if m != 0x830 && a.WriteMSR(m, 1<<32) {
			t.Errorf("write of %#x accepts reserved bits", m)
		}
	}
	if a.WriteMSR(0x80b, 1) || a.WriteMSR(0x828, 1) || a.WriteMSR(0x830, 1<<16) || a.WriteMSR(0x808, 0x100) {
		t.Error("reserved bits accepted")
	}
	a.WriteMSR(0x80f, 0x1ff)
	a.WriteMSR(0x83f, 0x77)
	if v, ok := a.Interrupt(); !ok || v != 0x77 {
		t.Error("no self IPI")
	}
}

// TestEveryAccess: row 1 of the hostile guest.
func TestEveryAccess(t *testing.T) {
	r := newRig(t, 0, 1)
	a := r.APIC(0)
	for _, size := range []int{1, 2, 4, 8} {
		for off := uint64(0); off+uint64(size) <= 0x1000; off++ {
			for _, v := range []uint64{0, ^uint64(0), 0x5a5a5a5a5a5a5a5a} {
				a.Write(off, size, v)
				if got := a.Read(off, size); got&^bus.Ones(size) != 0 {
					t.Fatalf("%d bytes at %#x read %#x", size, off, got)
				}
			}
		}
	}
	r.clock.advance(1e9)
}

func TestNoAllocations(t *testing.T) {
	r := newRig(t, 0, 1)
	r.woken = make([]int, 0, 1<<20)
	a := r.APIC(0)
	if n := testing.AllocsPerRun(1000, func() {
		r.Deliver(0xfeeff000, 0x41)
		v, _ := a.Interrupt()
		a.Ack(v)
		a.Write(regEOI, 4, 0)
		a.Write(regTICR, 4, 1000)
		a.Read(regTCCR, 4)
		a.Write(regICRLow, 4, 0x80040)
		a.Interrupt()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestNoLostInterrupt: senders race with the CPU, which sleeps whenever it has
// no event. Each sender waits for its vector, so a lost one would hang.
func TestNoLostInterrupt(t *testing.T) {
	var wake sync.Mutex
	cond := sync.NewCond(&wake)
	var c *Cluster
	c, err := NewCluster(Config{IDs: []uint32{0}, Clock: &clock{}, Wake: func(int) { wake.Lock(); cond.Signal(); wake.Unlock() }})
	if err != nil {
		t.Fatal(err)
	}
	a := c.APIC(0)
	a.Write(regSVR, 4, 0x1ff)
	const senders, rounds = 4, 2000
	var seen [256]chan struct{}
	for s := range senders {
		v := uint32(0x40 + s*0x11)
		seen[v] = make(chan struct{}, 1)
		go func() {
			for range rounds {
				c.Deliver(0xfee00000, v)
				<-seen[v] // one at a time: a lost one hangs here
			}
		}()
	}
	for n := 0; n < senders*rounds; {
		if a.Events() == 0 {
			wake.Lock()
			for a.Events() == 0 {
				cond.Wait()
			}
			wake.Unlock()
		}
		if v, ok := a.Interrupt(); ok {
			a.Ack(v)
			a.Write(regEOI, 4, 0)
			n++
			seen[v] <- struct{}{}
		}
	}
}

func FuzzAccess(f *testing.F) {
	f.Add([]byte{0x0f, 1, 0xff, 0x30, 0x40, 0x40})
	f.Fuzz(func(t *testing.T, ops []byte) {
		r := newRig(t, 0, 1, 0x30)
		for i := 0; len(ops) >= 4; ops, i = ops[4:], i+1 {
			a := r.APIC(i % 3)
			v := uint64(ops[1])<<8 | uint64(ops[2]) | uint64(ops[3])<<16
			switch ops[0] >> 6 {
			case 0:
				a.Write(uint64(ops[0])<<4, 4, v)
				a.Read(uint64(ops[0])<<4, 4)
			case 1:
				a.WriteMSR(MSRX2APICFirst|uint32(ops[0]&0x3f), v)
				a.ReadMSR(MSRX2APICFirst | uint32(ops[0]&0x3f))
			case 2:
				a.WriteMSR(MSRAPICBase, 0xfee00000|v&0xfff)
				r.Deliver(0xfee00000|v<<4&0xfffff, uint32(v))
				a.SetPin(i%2, v&1 != 0)
			default:
				a.WriteMSR(MSRTSCDeadline, r.clock.ns+v)
				if n := r.clock.advance(v); n > 3000 {
					t.Fatalf("%d timers in %d ns", n, v)
				}
			}
			if v, ok := a.Interrupt(); ok {
				if v < firstVector {
					t.Fatalf("vector %d", v)
				}
				a.Ack(v)
				if _, again := a.Interrupt(); again && v>>4 >= a.irr.highest()>>4 {
					t.Fatal("an interrupt of the class in service")
				}
			}
			if a.Take(EventINIT) {
				a.INIT()
			}
		}
	})
}
