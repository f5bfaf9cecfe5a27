package linux

import (
	"encoding/binary"

	"github.com/gvmspawn/gvmspawn/vmm/layout"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// Control register bits (Intel SDM vol. 3A §2.5) and EFER (vol. 4).
const (
	cr0PE  = 1 << 0
	cr0MP  = 1 << 1
	cr0ET  = 1 << 4
	cr0NE  = 1 << 5
	cr0WP  = 1 << 16
	cr0PG  = 1 << 31
	cr4PAE = 1 << 5

	eferLME = 1 << 8
	eferLMA = 1 << 10

	rflagsReserved = 1 << 1
)

// Segment attributes in the layout of [vcpu.Segment].
const (
	attrCode64     = 0xa09b  // execute/read, accessed; S, P, L, G
	attrCode32     = 0xc09b  // execute/read, accessed; S, P, D, G
	attrData       = 0xc093  // read/write, accessed; S, P, D, G
	attrTSS        = 0x008b  // busy TSS; P
	attrUnusable   = 1 << 16 // no LDT
	pvhTSSLimit    = 0x67
	flatLimit      = 0xffff_ffff
	pageTablePages = 6 // PML4, PDPT, four page directories: 4 GiB
)

// gdt is the table for both entries; selectors are in spec.go (Intel SDM vol. 3A §3.4.5).
var gdt = [...]uint64{
	0, 0,
	0x00af_9b00_0000_ffff, // bootCS, see pvhCode
	0x00cf_9300_0000_ffff, // bootDS
	0x0000_8b00_0000_0067, // bootTR
	0,
}

// pvhCode is bootCS for PVH: 32-bit code.
const pvhCode = 0x00cf_9b00_0000_ffff

// longModeRegisters is the state at the 64-bit entry: "the cpu must be in
// 64-bit mode with paging enabled ... %rsi must hold the base address of the
// struct boot_params" (boot.rst, "64-bit Boot Protocol").
func longModeRegisters(entry uint64) vcpu.Registers {
	r := commonRegisters(entry)
	r.CR0 = cr0PG | cr0WP | cr0NE | cr0ET | cr0MP | cr0PE
	r.CR3 = layout.BootPageTables
	r.CR4 = cr4PAE
	r.EFER = eferLME | eferLMA
	r.Seg[vcpu.CS].Attr = attrCode64
	r.GPR[vcpu.RSI] = layout.ZeroPage
	r.GPR[vcpu.RSP] = layout.BootStack
	return r
}

// pvhRegisters is the state at the PVH entry: "cr0: bit 0 (PE) must be set.
// All the other writeable bits are cleared. cr4: all bits are cleared. cs: must
// be a 32-bit read/execute code segment with a base of '0' and a limit of
// '0xFFFFFFFF'. ... ebx: contains the physical memory address where the loader
// has placed the boot start info structure" (pvh.pandoc).
func pvhRegisters(entry uint64) vcpu.Registers {
	r := commonRegisters(entry)
	r.CR0 = cr0ET | cr0PE
	r.Seg[vcpu.CS].Attr = attrCode32
	r.GPR[vcpu.RBX] = layout.PVHInfo
	return r
}

// commonRegisters has flat segments and interrupts off.
func commonRegisters(entry uint64) vcpu.Registers {
	r := vcpu.Registers{RIP: entry, RFLAGS: rflagsReserved}
	for i := range r.Seg {
		r.Seg[i] = vcpu.Segment{Selector: bootDS, Limit: flatLimit, Attr: attrData}
	}
	r.Seg[vcpu.CS].Selector = bootCS
	r.TR = vcpu.Segment{Selector: bootTR, Limit: pvhTSSLimit, Attr: attrTSS}
	r.LDTR = vcpu.Segment{Attr: attrUnusable}
	r.GDT = vcpu.Table{Base: layout.BootGDT, Limit: uint16(len(gdt)*8 - 1)}
	return r
}

// writeTables leaves the descriptor table, and the identity map of the first
// 4 GiB in 2 MiB pages (Intel SDM vol. 3A §4.5), which every x86-64 CPU has.
func (l *loader) writeTables() error {
	le := binary.LittleEndian
	for i, d := range gdt {
		le.PutUint64(l.ram[layout.BootGDT+i*8:], d)
	}
	l.Memory.MarkWritten(layout.BootGDT, uint64(len(gdt)*8))
	if l.k.pvh {
		le.PutUint64(l.ram[layout.BootGDT+bootCS:], pvhCode)
		return nil
	}
	const present, write, large = 1 << 0, 1 << 1, 1 << 7
	t := l.ram[layout.BootPageTables:][:pageTablePages*layout.PageSize]
	clear(t)
	pdpt, dirs := uint64(layout.BootPageTables+layout.PageSize), uint64(layout.BootPageTables+2*layout.PageSize)
	le.PutUint64(t, pdpt|present|write)
	for i := range uint64(4) {
		le.PutUint64(t[layout.PageSize+i*8:], (dirs+i*layout.PageSize)|present|write)
	}
	for i := range uint64(4 * 512) {
		le.PutUint64(t[2*layout.PageSize+i*8:], i*hugePage|present|write|large)
	}
	l.Memory.MarkWritten(layout.BootPageTables, uint64(len(t)))
	return nil
}
