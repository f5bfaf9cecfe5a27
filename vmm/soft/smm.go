package soft

import (
	"sync/atomic"

	"github.com/gvmspawn/gvmspawn/devices/lapic"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// System Management Mode (AMD APM vol. 2 rev. 3.41 chapter 10).

// SMM is what Config.SMM gives the CPUs.
type SMM struct {
	// IO is told of the accesses of CPUs in SMM instead of Config.IO, if not nil.
	IO vcpu.IO
}

const (
	resetSMBASE = 0x30000
	smmEntry    = 0x8000
	smmRevision = 0x20064 // AMD64's layout, SMBASE relocation
	// smmState is where the state save area begins, from SMBASE; it is 512 bytes.
	smmState    = 0xfe00
	smmStateLen = 0x200
)

// Offsets in the state save area (AMD APM vol. 2 table 10-1), from SMBASE+0xfe00.
const (
	smES       = 0x000 // selector, attributes, limit, base: 16 bytes each, ES to GS
	smGDTR     = 0x060
	smLDTR     = 0x070
	smIDTR     = 0x080
	smTR       = 0x090
	smEFER     = 0x0d0
	smRevision = 0x0fc
	smSMBASE   = 0x100
	smCR4      = 0x148
	smCR3      = 0x150
	smCR0      = 0x158
	smDR7      = 0x160
	smDR6      = 0x168
	smRFLAGS   = 0x170
	smRIP      = 0x178
	smR15      = 0x180
	smRAX      = 0x1f8 // down to R15, in the order of the encoding
)

// SMI delivers a system management interrupt to every CPU. CPUs that wait for
// SIPI do not take it.
func (vm *VM) SMI() {
	if vm.smm == nil {
		return
	}
	for i := range vm.cpus {
		vm.apics.APIC(i).SMI()
	}
}

// HideSMRAM implements vcpu.SMM.
func (vm *VM) HideSMRAM(hide bool) error {
	if vm.smramHidden.Swap(hide) == hide {
		return nil
	}
	vm.life.RLock()
	defer vm.life.RUnlock()
	for _, c := range vm.cpus {
		c.post(notice{kind: noticeEvery}) // their translations
	}
	return nil
}

// host returns the host address of gpa as the CPU sees it: see VM.host.
func (c *CPU) host(gpa uint64) (uint64, mem.Kind) {
	h, kind := c.vm.host(gpa)
	if kind == mem.SMRAM && !c.smm && c.vm.smramHidden.Load() {
		return 0, mem.RAM
	}
	return h, kind
}

// io is who is told of the CPU's accesses.
func (c *CPU) io() vcpu.IO {
	if c.smm && c.vm.smm.IO != nil {
		return c.vm.smm.IO
	}
	return c.vm.io
}

// smiDue reports whether an SMI may wait.
func (c *CPU) smiDue() bool { return c.vm.smm != nil && c.apic.Events()&lapic.EventSMI != 0 }

// takeSMI enters SMM if an SMI is due, and reports that.
func (c *CPU) takeSMI() bool {
	if c.smm || !c.apic.Take(lapic.EventSMI) || c.vm.smm == nil || c.waiting {
		return false
	}
	c.enterSMM()
	return true
}

// saveArea is a state save area.
type saveArea [smmStateLen]byte

func (a *saveArea) put(at int, v uint64, n int) {
	for i := range n {
		a[at+i] = byte(v >> (8 * i))
	}
}

func (a *saveArea) get(at, n int) (v uint64) {
	for i := range n {
		v |= uint64(a[at+i]) << (8 * i)
	}
	return v
}

func (a *saveArea) putSegment(at int, s *vcpu.Segment) {
	a.put(at, uint64(s.Selector), 2)
	a.put(at+2, uint64(s.Attr&0xf0ff), 2)
	a.put(at+4, uint64(s.Limit), 4)
	a.put(at+8, s.Base, 8)
}

func (a *saveArea) segment(at int) vcpu.Segment {
	s := vcpu.Segment{Selector: uint16(a.get(at, 2)), Attr: uint32(a.get(at+2, 2)) & 0xf0ff, Limit: uint32(a.get(at+4, 4)), Base: a.get(at+8, 8)}
	if s.Attr&attrP == 0 {
		s.Attr |= attrUnusable
	}
	return s
}

func (a *saveArea) putTable(at int, t *vcpu.Table) {
	a.put(at+4, uint64(t.Limit), 4)
	a.put(at+8, t.Base, 8)
}

func (a *saveArea) table(at int) vcpu.Table {
	return vcpu.Table{Base: a.get(at+8, 8), Limit: uint16(a.get(at+4, 2))}
}

// enterSMM saves the state and goes to the handler (APM vol. 2 §10.3.1, §10.3.5).
func (c *CPU) enterSMM() {
	s := c.s
	c.traceSMM("SMI")
	var a saveArea
	for i := range 6 {
		a.putSegment(smES+16*i, &s.Seg[i])
	}
	a.putSegment(smLDTR, &s.Seg[segLDTR])
	a.putSegment(smTR, &s.Seg[segTR])
	a.putTable(smGDTR, &s.GDT)
	a.putTable(smIDTR, &s.IDT)
	for i := range 16 {
		a.put(smRAX-8*i, s.R[i], 8)
	}
	for at, v := range map[int]uint64{smRIP: s.RIP, smRFLAGS: s.rflags(), smDR6: s.DR[6], smDR7: s.DR[7],
		smCR0: s.CR0, smCR3: s.CR3, smCR4: s.CR4, smEFER: s.EFER} {
		a.put(at, v, 8)
	}
	a.put(smRevision, smmRevision, 4)
	a.put(smSMBASE, uint64(c.smbase), 4)
	c.smm, c.halted, c.shadow = true, false, false
	c.smmNMI, c.nmiBlocked = c.nmiBlocked, true
	c.saveState(&a)

	s.Flags = 2
	s.setArith(0)
	s.CR0 &^= cr0PE | cr0EM | cr0TS | cr0PG
	s.CR4, s.EFER, s.DR[7], s.CPL = 0, 0, 0x400, 0
	data := vcpu.Segment{Limit: 0xffffffff, Attr: attrP | attrS | 3}
	for i := range 6 {
		s.Seg[i] = data
	}
	s.Seg[vcpu.CS] = vcpu.Segment{Selector: uint16(c.smbase >> 4), Base: uint64(c.smbase), Limit: 0xffffffff, Attr: attrP | attrS | 3}
	s.RIP = smmEntry
	c.changedMode()
}

// traceSMM reports that SMM begins at the present RIP, or has ended to it.
func (c *CPU) traceSMM(what string) {
	if c.vm.tracing&TraceInt != 0 {
		c.vm.trace("cpu %d %s rip %#x rsp %#x smbase %#x count %d", c.id, what, c.s.RIP, c.s.R[vcpu.RSP], c.smbase, c.s.Count)
	}
}

// changedMode makes everything that is derived from registers true again.
func (c *CPU) changedMode() {
	c.flushTLB()
	c.switchCR3(false)
	c.setDataBreaks()
	c.setMode()
}

// saveState writes the state save area, as far as there is RAM.
func (c *CPU) saveState(a *saveArea) {
	at := uint64(c.smbase) + smmState
	for i := range uint64(len(a)) {
		if h, kind := c.host(at + i); h != 0 && kind != mem.ROM {
			st8(h, a[i])
		}
	}
	for gpa, end := at, at+uint64(len(a)); gpa < end; {
		n := min(end-gpa, 4096-gpa&0xfff)
		if c.vm.page(gpa) != nil {
			c.wrote(gpa, n)
		}
		gpa += n
	}
}

// loadState reads it; what is no memory is ones.
func (c *CPU) loadState(a *saveArea) {
	at := uint64(c.smbase) + smmState
	for i := range uint64(len(a)) {
		a[i] = 0xff
		if h, _ := c.host(at + i); h != 0 {
			a[i] = ld8(h)
		}
	}
}

// genRSM is RSM (APM vol. 2 §10.4): outside of SMM it is #UD, and a state that no
// CPU can have is a shutdown.
func genRSM(c *CPU, _ *decode.Inst) int {
	if !c.smm {
		return c.raise(vecUD)
	}
	s := c.s
	var a saveArea
	c.loadState(&a)
	cr0, cr4, efer := a.get(smCR0, 8), a.get(smCR4, 8), a.get(smEFER, 8)
	if cr0&cr0PG != 0 && cr0&cr0PE == 0 || cr4&^c.vm.features.cr4 != 0 || efer&^(eferSCE|eferLME|eferLMA|eferNXE) != 0 ||
		efer&eferLMA != 0 && (cr0&cr0PG == 0 || cr4&cr4PAE == 0) || cr0>>32 != 0 || a.get(smCR3, 8)&^physMask != 0 {
		c.shutdown = true
		return stExit
	}
	for i := range 6 {
		s.Seg[i] = a.segment(smES + 16*i)
	}
	s.Seg[segLDTR], s.Seg[segTR] = a.segment(smLDTR), a.segment(smTR)
	s.GDT, s.IDT = a.table(smGDTR), a.table(smIDTR)
	for i := range 16 {
		s.R[i] = a.get(smRAX-8*i, 8)
	}
	s.RIP = a.get(smRIP, 8)
	f := a.get(smRFLAGS, 8)
	s.Flags = f&^flagsArith | 2
	s.setArith(f)
	s.DR[6], s.DR[7] = a.get(smDR6, 8)&0xffffffff, a.get(smDR7, 8)&0xffffffff
	s.CR0, s.CR3, s.CR4, s.EFER = cr0|cr0ET, a.get(smCR3, 8), cr4, efer
	s.CPL = 0
	if f&flagVM != 0 {
		s.CPL = 3
	} else if cr0&cr0PE != 0 {
		s.CPL = s.Seg[vcpu.SS].Attr >> 5 & 3
	}
	if a.get(smRevision, 4)&(1<<17) != 0 {
		c.smbase = uint32(a.get(smSMBASE, 4))
	}
	c.smm, c.nmiBlocked = false, c.smmNMI
	c.changedMode()
	c.traceSMM("RSM")
	atomic.OrUint32(&s.Exit, exitIntr) // what waited meanwhile
	return stExit
}
