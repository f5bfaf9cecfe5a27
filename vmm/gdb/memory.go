package gdb

import (
	"encoding/binary"

	"github.com/gvmspawn/gvmspawn/vmm/mem"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

const pageSize = 4096

// Bits of control registers and paging-structure entries (Intel SDM vol. 3A §2.5, §4.5).
const (
	cr0PG   = 1 << 31
	cr4PSE  = 1 << 4
	cr4PAE  = 1 << 5
	cr4LA57 = 1 << 12
	eferLMA = 1 << 10

	pteP     = 1 << 0
	ptePS    = 1 << 7
	addrMask = (1<<52 - 1) &^ 0xfff
)

// space is guest memory as one CPU sees it.
type space struct {
	mem      *mem.Memory
	regs     *vcpu.Registers
	physical bool // addresses are physical
}

// bytes returns the memory at addr up to the end of its page, or nil. What is
// no memory, a device's registers above all, is not touched, and ROM is not written.
func (s *space) bytes(addr uint64, write bool) ([]byte, mem.GPA) {
	gpa, ok := addr, true
	if !s.physical {
		gpa, ok = s.translate(addr)
	}
	if !ok {
		return nil, 0
	}
	n := pageSize - gpa%pageSize // regions are whole pages
	if b, err := s.mem.Slice(mem.GPA(gpa), n); err == nil {
		return b, mem.GPA(gpa)
	}
	r := s.mem.Find(mem.GPA(gpa))
	if r == nil || write || r.Kind != mem.ROM {
		return nil, 0
	}
	off := gpa - uint64(r.Base)
	return r.Bytes()[off : off+n], mem.GPA(gpa)
}

// read copies memory at addr into p, up to the first byte that is not there.
func (s *space) read(p []byte, addr uint64) int {
	n := 0
	for n < len(p) {
		b, _ := s.bytes(addr+uint64(n), false)
		if b == nil {
			break
		}
		n += copy(p[n:], b)
	}
	return n
}

// write copies p to RAM at addr and reports whether all of
// it is there; if not, nothing is written.
func (s *space) write(p []byte, addr uint64) bool {
	for n := 0; n < len(p); {
		b, _ := s.bytes(addr+uint64(n), true)
		if b == nil {
			return false
		}
		n += len(b)
	}
	for n := 0; n < len(p); {
		b, gpa := s.bytes(addr+uint64(n), true)
		done := copy(b, p[n:])
		s.mem.MarkWritten(gpa, uint64(done))
		n += done
	}
	return true
}

// translate walks the page tables for a linear address. Rights do not count,
// and no accessed bit is set.
func (s *space) translate(la uint64) (gpa uint64, ok bool) {
	r := s.regs
	switch {
	case r.CR0&cr0PG == 0:
		return la & 0xffffffff, true
	case r.EFER&eferLMA != 0 && r.CR4&cr4LA57 != 0:
		return s.walk(la, r.CR3&addrMask, 48, 9, 8)
	case r.EFER&eferLMA != 0:
		return s.walk(la, r.CR3&addrMask, 39, 9, 8)
	case r.CR4&cr4PAE != 0:
		return s.walkPAE(la & 0xffffffff)
	}
	return s.walk(la&0xffffffff, r.CR3&0xfffff000, 22, 10, 4)
}

// walkPAE is PAE paging: four entries without a large page above two levels
// (Intel SDM vol. 3A §4.4).
func (s *space) walkPAE(la uint64) (gpa uint64, ok bool) {
	e, ok := s.entry(s.regs.CR3&0xffffffe0+la>>30*8, 8)
	if !ok || e&pteP == 0 {
		return 0, false
	}
	return s.walk(la, e&addrMask, 21, 9, 8)
}

// walk goes down from the table at base, whose index of bits bits begins at
// shift and whose entries are size bytes.
func (s *space) walk(la, base uint64, shift, bits uint, size int) (gpa uint64, ok bool) {
	for {
		e, ok := s.entry(base+la>>shift&(1<<bits-1)*uint64(size), size)
		if !ok || e&pteP == 0 {
			return 0, false
		}
		large := e&ptePS != 0 && shift > 12 && shift <= 30 && (size == 8 || s.regs.CR4&cr4PSE != 0)
		if shift == 12 || large {
			mask := uint64(1)<<shift - 1
			frame := e & addrMask &^ mask
			if size == 4 && large {
				frame |= e >> 13 & 0xff << 32 // PSE-36 (§4.3)
			}
			return frame | la&mask, true
		}
		base = e & addrMask
		shift -= bits
	}
}

// entry reads a paging-structure entry of size bytes.
func (s *space) entry(at uint64, size int) (uint64, bool) {
	var b [8]byte
	if s.mem.ReadAt(b[:size], mem.GPA(at)) != nil {
		return 0, false
	}
	return binary.LittleEndian.Uint64(b[:]), true
}
