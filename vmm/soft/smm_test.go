package soft

import (
	"encoding/binary"
	"sync/atomic"
	"testing"

	"github.com/gvmspawn/gvmspawn/devices/lapic"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

var _ vcpu.SMM = (*VM)(nil)

// smramAt is where the test's SMRAM is: 64 KiB.
const smramAt = 0x40_0000

// smmGuest is a guest in 64-bit mode, its memory mapped by large pages, with a
// handler at SMBASE 0x30000.
func smmGuest(t *testing.T, cpus int, handler string) (*guest, *SMM) {
	smm := &SMM{}
	g := newGuestWith(t, Config{CPUs: cpus, SMM: smm}, func(m *mem.Memory) {
		if _, err := m.Add("SMRAM", smramAt, 1<<16, mem.SMRAM); err != nil {
			t.Fatal(err)
		}
	})
	g.put(resetSMBASE+smmEntry, handler)
	for i := range cpus {
		c := g.start(i, 3, 0x8000)
		g.setWord(0x3000+8*(smramAt>>21), smramAt|0x83)
		c.flushTLB()
	}
	return g, smm
}

// saved is a field of the state that CPU c saved last at SMBASE base.
func (g *guest) saved(base, field uint64) uint64 { return g.word(base + smmState + field) }

// TestSMI: an SMI saves AMD64's state and starts the handler in its mode (APM
// vol. 2 §10.3.1, §10.3.5, table 10-1); RSM brings everything back, with a
// new SMBASE; an SMI in between waits.
func TestSMI(t *testing.T) {
	// mov ebx, cs; out 0xf5, ax(cs)...: 16-bit code: smsw ax; out 0xf5, ax; mov ax, cs; out 0xf5, ax;
	// mov dword cs:[0xff00], 0x50000; rsm
	handler := "0f01e0" + "e7f5" + "8cc8" + "e7f5" + "2e66c706" + "00ff" + "00000500" + "0faa"
	// 64-bit: mov eax, 0x1234; out 0xf4, al
	g, _ := smmGuest(t, 1, handler)
	g.put(0x8000, "b834120000e6f4ebfe")
	c := g.vm.cpus[0]
	c.s.R[vcpu.R9], c.s.R[vcpu.RDI] = 0x1122334455667788, 99
	c.s.setArith(flagCF | flagZF)
	c.s.Seg[segTR].Attr, c.s.Seg[segLDTR].Attr = attrUnusable, attrUnusable
	before := vcpu.Registers{}
	c.Registers(&before)
	var after vcpu.Registers
	g.vm.SMI()
	g.vm.SMI() // counts as the same
	if !c.apic.Take(lapic.EventSMI) {
		t.Fatal("no SMI is pending")
	}
	g.vm.SMI()
	g.run()
	if len(g.out) != 2 || g.out[0]&0xffff != 0x10 && g.out[0]&1 != 0 || g.out[1] != resetSMBASE>>4 {
		t.Errorf("the handler saw %#x", g.out)
	}
	c.Registers(&after)
	after.RIP, after.GPR[vcpu.RAX] = before.RIP, before.GPR[vcpu.RAX]
	if after != before {
		t.Errorf("after RSM\n%+v, was\n%+v", after, before)
	}
	if c.smbase != 0x50000 || c.smm || c.nmiBlocked {
		t.Errorf("SMBASE %#x, in SMM %v, NMIs blocked %v", c.smbase, c.smm, c.nmiBlocked)
	}
	for field, want := range map[uint64]uint64{smRIP: 0x8000, smRAX - 8*9: 0x1122334455667788, smRAX - 8*7: 99, smEFER: before.EFER,
		smCR3: before.CR3, smCR0: before.CR0, smCR4: before.CR4, smES + 16*vcpu.CS + 8: before.Seg[vcpu.CS].Base} {
		if got := g.saved(resetSMBASE, field); got != want {
			t.Errorf("field %#x is %#x, want %#x", field, got, want)
		}
	}
	if rev := uint32(g.saved(resetSMBASE, smRevision)); rev != 0x20064 {
		t.Errorf("revision %#x", rev)
	}
}

// TestSMIByPort: an SMI that a port's chip raises is taken before the next
// instruction, though that is in the same block; it wakes a halted CPU, which goes
// on behind HLT (APM vol. 2 §10.3.3).
func TestSMIByPort(t *testing.T) {
	// handler: inc byte cs:[0x9000]; rsm
	g, smm := smmGuest(t, 2, "2efe060090"+"0faa")
	smm.IO = g
	var raise smiPort
	raise.guest, raise.vm = g, g.vm
	g.vm.io = &raise
	// CPU 0: out 0xb2, al; mov al, [0x39000]; out 0xf5, al; again until CPU 1 goes on: out 0xb2, al;
	// cmp byte [0x9100], 1; jne; out 0xf4, al. CPU 1: cli; hlt; mov byte [0x9100], 1; pause; jmp
	g.put(0x8000, "e6b2"+"8a042500900300"+"e6f5"+"e6b2"+"803c250091000001"+"75f4"+"e6f4"+"ebfe")
	g.put(0x8100, "fa"+"f4"+"c604250091000001"+"f390"+"ebfc")
	g.vm.cpus[1].s.RIP = 0x8100
	g.vm.cpus[1].smbase = 0x60000
	g.put(0x60000+smmEntry, "0faa")
	g.run()
	if len(g.out) != 1 || g.out[0] != 1 {
		t.Errorf("CPU 0 read %v behind its SMI", g.out)
	}
	if g.saved(0x60000, smRevision)&0xffffffff != smmRevision {
		t.Error("CPU 1 had no SMI")
	}
}

// smiPort raises an SMI at port 0xb2.
type smiPort struct {
	*guest
	vm *VM
}

func (p *smiPort) PortOut(port uint16, size int, v uint32) {
	if port == 0xb2 {
		p.vm.SMI()
		return
	}
	p.guest.PortOut(port, size, v)
}

// TestSMRAM: hidden SMRAM is no memory to CPUs outside of SMM, however they come to
// it, and is there in SMM; devices never reach it.
func TestSMRAM(t *testing.T) {
	// handler: mov eax, [0x400000] by a 32-bit address; inc dword; out 0xf5, eax; rsm
	g, _ := smmGuest(t, 1, "66678b0500004000"+"66e7f5"+"6667ff0500004000"+"0faa")
	c := g.vm.cpus[0]
	r := g.mem.Find(smramAt)
	binary.LittleEndian.PutUint32(r.Bytes(), 7)
	// 64-bit: mov eax, [0x400000]; out 0xf5, eax; mov dword [0x400000], 5; out 0xf4, al; jmp
	g.put(0x8000, "8b042500004000"+"e7f5"+"c704250000400005000000"+"e6f4"+"ebfe")
	read := func(smi bool) (seen []uint32) {
		g.ended.Store(false)
		g.out = nil
		c.s.RIP = 0x8000
		if smi {
			g.vm.SMI()
		}
		g.run()
		return g.out
	}
	if got := read(false); got[0] != 7 || r.Bytes()[0] != 5 {
		t.Errorf("open: read %d, then %d is there", got[0], r.Bytes()[0])
	}
	g.vm.HideSMRAM(true)
	r.SetHidden(true)
	if got := read(false); got[0] != 0xffffffff || r.Bytes()[0] != 5 {
		t.Errorf("hidden: read %#x, then %d is there", got[0], r.Bytes()[0])
	}
	if got := read(true); len(got) != 2 || got[0] != 5 || got[1] != 0xffffffff || r.Bytes()[0] != 6 {
		t.Errorf("in SMM, then outside: read %#x, then %d is there", got, r.Bytes()[0])
	}
	if _, err := g.mem.Slice(smramAt, 4); err == nil {
		t.Error("a device reaches SMRAM")
	}
	g.vm.HideSMRAM(false)
	if got := read(false); got[0] != 6 {
		t.Errorf("open again: read %#x", got[0])
	}
}

// TestSMMBlocks: INIT and NMI wait for RSM; RSM outside of SMM is #UD; a state that
// cannot be is a shutdown.
func TestSMMBlocks(t *testing.T) {
	g, _ := smmGuest(t, 1, "0faa")
	c := g.vm.cpus[0]
	c.enterSMM()
	c.apic.NMI()
	if _, stop, done := c.interrupts(); stop || done || !c.apic.Take(lapic.EventNMI) {
		t.Error("an NMI is taken in SMM")
	}
	g.vm.apics.Deliver(0xfee0_0000, 5<<8)
	if c.interrupts(); !c.smm {
		t.Error("INIT is taken in SMM")
	}
	g.setWord(resetSMBASE+smmState+smCR0, 1<<31)
	atomic.StoreUint32(&c.s.Exit, 0)
	if ex, err := c.Run(); err != nil || ex.Reason != vcpu.ExitShutdown {
		t.Errorf("RSM to paging without protection: %+v, %v", ex, err)
	}
	p, pc := protected(t, false)
	p.put(atCode, "0faa")
	p.run()
	if r := p.record(); r.vec != vecUD || pc.smm {
		t.Errorf("RSM outside of SMM: vector %d", r.vec)
	}
}

// FuzzRSM returns from SMM with any state: whatever it is the CPU goes on or
// shuts down.
func FuzzRSM(f *testing.F) {
	f.Add(make([]byte, smmStateLen))
	f.Add([]byte{0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, state []byte) {
		c, ram := fuzzMachine(t)
		c.vm.smm = &SMM{}
		fuzzMode(c, ram, 3, false)
		c.enterSMM()
		copy(ram[resetSMBASE+smmState:], state[:min(len(state), smmStateLen)])
		ram[resetSMBASE+smmEntry], ram[resetSMBASE+smmEntry+1] = 0x0f, 0xaa
		for range 20 {
			c.Kick()
			c.Run()
			c.vm.SMI()
		}
	})
}
