package soft

import (
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// Kinds of access, as bits of a page fault's error code (SDM vol. 3A §4.7).
const (
	accRead  = 0
	pfP      = 1 << 0
	accWrite = 1 << 1
	accUser  = 1 << 2
	pfRSVD   = 1 << 3
	accFetch = 1 << 4
)

// Bits of paging-structure entries (SDM vol. 3A §4.5).
const (
	pteP  = 1 << 0
	pteW  = 1 << 1
	pteU  = 1 << 2
	pteA  = 1 << 5
	pteD  = 1 << 6
	ptePS = 1 << 7
	pteG  = 1 << 8
	pteNX = 1 << 63

	physBits = 46
	physMask = 1<<physBits - 1
	addrMask = physMask &^ 0xfff
)

// region is a mem.Region in the form the MMU looks it up.
type region struct {
	base, size uint64
	host       uint64
	kind       mem.Kind
	pages      slab[pageInfo] // one each, none of them taken
}

// host returns the host address of gpa, or 0 if there is no memory there.
func (vm *VM) host(gpa uint64) (uint64, mem.Kind) {
	for i := range vm.regions {
		r := &vm.regions[i]
		if off := gpa - r.base; off < r.size {
			return r.host + off, r.kind
		}
	}
	return 0, mem.RAM
}

// table is host for a paging-structure entry. Windows hold none: their memory may
// go away.
func (c *CPU) table(gpa uint64) uint64 {
	h, kind := c.host(gpa)
	if kind == mem.Window {
		return 0
	}
	return h
}

// xlat is the outcome of a page walk.
type xlat struct {
	gpa    uint64
	w, u   bool
	nx     bool
	global bool
	large  bool
	d      bool // dirty, or needs no dirty bit
}

// fault records an exception for the present instruction. It returns false so
// that callers can return it at once.
func (c *CPU) fault(vec uint8) bool {
	c.exc = exception{vec: vec}
	return false
}

func (c *CPU) faultErr(vec uint8, err uint32) bool {
	c.exc = exception{vec: vec, hasErr: true, err: err}
	return false
}

func (c *CPU) pageFault(la uint64, err uint32) bool {
	c.exc = exception{vec: vecPF, hasErr: true, err: err, cr2: la}
	return false
}

// walk translates la for an access of kind acc with the rights of a user
// access if acc has accUser. It sets accessed and dirty bits. On failure the
// page fault is recorded.
func (c *CPU) walk(la uint64, acc uint32) (x xlat, ok bool) {
	s := c.s
	if s.CR0&cr0PG == 0 {
		return xlat{gpa: la & 0xffffffff, w: true, u: true, d: true}, true
	}
	if s.EFER&eferLMA != 0 {
		return c.walk4(la, acc)
	}
	if s.CR4&cr4PAE != 0 {
		return c.walkPAE(la, acc)
	}
	return c.walk32(la, acc)
}

// pfBits is the error code of a fault on an access of kind acc.
func (c *CPU) pfBits(acc uint32) uint32 {
	if acc&accFetch != 0 && (c.s.CR4&cr4SMEP == 0 && c.s.EFER&eferNXE == 0) {
		acc &^= accFetch
	}
	return acc
}

// walk4 is 4-level paging (SDM vol. 3A §4.5).
func (c *CPU) walk4(la uint64, acc uint32) (x xlat, ok bool) {
	return c.walk64(la, acc, c.s.CR3&addrMask, 39)
}

// walkPAE is PAE paging (SDM vol. 3A §4.4); the PDPTEs are read each time.
func (c *CPU) walkPAE(la uint64, acc uint32) (x xlat, ok bool) {
	la &= 0xffffffff
	h := c.table(c.s.CR3&0xffffffe0 + la>>30*8)
	if h == 0 {
		return x, c.pageFault(la, c.pfBits(acc))
	}
	e := ld64(h)
	if e&pteP == 0 {
		return x, c.pageFault(la, c.pfBits(acc))
	}
	return c.walk64(la, acc, e&addrMask, 21)
}

// walk64 walks 64-bit entries from the table at base, whose index starts at bit shift.
func (c *CPU) walk64(la uint64, acc uint32, base uint64, shift uint) (x xlat, ok bool) {
	s := c.s
	x = xlat{w: true, u: true}
	var rsvd uint64 = 0x000f_ffff_ffff_ffff &^ physMask
	if s.EFER&eferNXE == 0 {
		rsvd |= pteNX
	}
	var ptrs, olds [4]uint64
	n := 0
	var e uint64
	top, topShift := base, shift
again:
	for {
		h := c.table(base + la>>shift&511*8)
		if h == 0 {
			return x, c.pageFault(la, c.pfBits(acc))
		}
		e = ld64(h)
		ptrs[n], olds[n] = h, e
		n++
		if e&pteP == 0 {
			return x, c.pageFault(la, c.pfBits(acc))
		}
		r := rsvd
		leaf := shift == 12 || e&ptePS != 0 && shift <= 30
		if e&ptePS != 0 && shift > 30 {
			r |= ptePS
		}
		if leaf && shift > 12 {
			r |= (1<<shift - 1) &^ 0x1fff
		}
		if e&r != 0 {
			return x, c.pageFault(la, c.pfBits(acc)|pfP|pfRSVD)
		}
		x.w = x.w && e&pteW != 0
		x.u = x.u && e&pteU != 0
		x.nx = x.nx || e&pteNX != 0
		if leaf {
			break
		}
		base = e & addrMask
		shift -= 9
	}
	if !c.permitted(&x, acc) {
		return x, c.pageFault(la, c.pfBits(acc)|pfP)
	}
	for i, h := range ptrs[:n] {
		want := olds[i] | pteA
		if i == n-1 && acc&accWrite != 0 {
			want |= pteD
		}
		if want != olds[i] && !cas64(h, olds[i], want) {
			// Another CPU changed the entry meanwhile: it may be gone.
			x, n, base, shift = xlat{w: true, u: true}, 0, top, topShift
			goto again
		}
	}
	mask := uint64(1)<<shift - 1
	x.gpa = e&addrMask&^mask | la&mask
	x.d = e&pteD != 0 || acc&accWrite != 0
	x.global = e&pteG != 0 && s.CR4&cr4PGE != 0
	x.large = shift > 12
	return x, true
}

// walk32 is 32-bit paging (SDM vol. 3A §4.3).
func (c *CPU) walk32(la uint64, acc uint32) (x xlat, ok bool) {
	s := c.s
	la &= 0xffffffff
	h := c.table(s.CR3&0xfffff000 + la>>22*4)
	if h == 0 {
		return x, c.pageFault(la, c.pfBits(acc))
	}
	e := uint64(ld32(h))
	if e&pteP == 0 {
		return x, c.pageFault(la, c.pfBits(acc))
	}
	x = xlat{w: e&pteW != 0, u: e&pteU != 0}
	pde, pdeOld := h, e
	shift := uint(22)
	if e&ptePS == 0 || s.CR4&cr4PSE == 0 {
		shift = 12
		if h = c.table(e&0xfffff000 + la>>12&1023*4); h == 0 {
			return x, c.pageFault(la, c.pfBits(acc))
		}
		if e = uint64(ld32(h)); e&pteP == 0 {
			return x, c.pageFault(la, c.pfBits(acc))
		}
		x.w, x.u = x.w && e&pteW != 0, x.u && e&pteU != 0
	} else if e&(1<<21) != 0 {
		return x, c.pageFault(la, c.pfBits(acc)|pfP|pfRSVD)
	}
	if !c.permitted(&x, acc) {
		return x, c.pageFault(la, c.pfBits(acc)|pfP)
	}
	want := e | pteA
	if acc&accWrite != 0 {
		want |= pteD
	}
	if pde != h && pdeOld&pteA == 0 && !cas32(pde, uint32(pdeOld), uint32(pdeOld|pteA)) ||
		want != e && !cas32(h, uint32(e), uint32(want)) {
		return c.walk32(la, acc) // another CPU changed an entry meanwhile
	}
	if shift == 22 {
		x.gpa = e&0xffc00000 | e>>13&0xff<<32 | la&0x3fffff
		x.large = true
	} else {
		x.gpa = e&0xfffff000 | la&0xfff
	}
	x.d = e&pteD != 0 || acc&accWrite != 0
	x.global = e&pteG != 0 && s.CR4&cr4PGE != 0
	return x, true
}

// permitted checks the access rights of SDM vol. 3A §4.6.1.
func (c *CPU) permitted(x *xlat, acc uint32) bool {
	s := c.s
	if acc&accFetch != 0 {
		if x.nx {
			return false
		}
		if acc&accUser != 0 {
			return x.u
		}
		return !(x.u && s.CR4&cr4SMEP != 0)
	}
	if acc&accUser != 0 {
		return x.u && (acc&accWrite == 0 || x.w)
	}
	if x.u && c.walkMode == tlbSMAP {
		return false
	}
	return acc&accWrite == 0 || x.w || s.CR0&cr0WP == 0
}

// translate walks for an access with the rights of TLB mode m and fills that
// buffer. host is 0 if the page is not memory. A write to ROM has host 0 too.
func (c *CPU) translate(la uint64, acc uint32, m int) (gpa, host uint64, ok bool) {
	if m == tlbUser {
		acc |= accUser
	}
	c.walkMode = m
	x, ok := c.walk(la, acc)
	if !ok {
		return 0, 0, false
	}
	if c.vm.tracing&TraceMMU != 0 {
		c.vm.trace("cpu %d translate %#x access %#x to %#x", c.id, la, acc, x.gpa)
	}
	h, kind := c.host(x.gpa)
	c.lastGlobal = x.global
	if h == 0 {
		return x.gpa, 0, true
	}
	i := la >> 12 & (TLBSize - 1)
	t := &c.slot.modes[m]
	e := t.entryAt(i)
	page := la &^ 0xfff
	bad := invalidTag(i)
	if e.Read != page && e.Exec != page {
		e.Read, e.Write, e.Exec = bad, bad, bad
	} else if e.Host != h&^0xfff {
		e.Read, e.Write, e.Exec = bad, bad, bad
	}
	e.Host = h &^ 0xfff
	w := x
	if c.permitted(&w, acc&accUser) {
		e.Read = page
	}
	if x.d && kind != mem.ROM && c.permitted(&w, acc&accUser|accWrite) && c.mayWrite(x.gpa) {
		e.Write = page
	} else {
		e.Write = bad
	}
	if c.permitted(&w, acc&accUser|accFetch) {
		e.Exec = page
	}
	t.note(i, x.global)
	if x.large {
		size := uint64(1<<30 - 1) // a bound of what the mapping may cover
		t.large.add(la&^size, la|size)
	}
	if acc&accWrite != 0 && kind == mem.ROM {
		h = 0
	}
	return x.gpa, h, true
}

// canonical reports whether va is a canonical 48-bit address.
func canonical(va uint64) bool { return uint64(int64(va<<16)>>16) == va }

// load reads size (1, 2, 4 or 8) bytes at the linear address la.
func (c *CPU) load(la uint64, size uint8) (uint64, bool) {
	e := c.s.entry(la)
	if off := la ^ e.Read; off <= 4096-uint64(size) {
		return ldn(e.Host+off, size), true
	}
	return c.loadSlow(la, size, c.tlbMode)
}

func ldn(h uint64, size uint8) uint64 {
	switch size {
	case 1:
		return uint64(ld8(h))
	case 2:
		return uint64(ld16(h))
	case 4:
		return uint64(ld32(h))
	}
	return ld64(h)
}

func stn(h, v uint64, size uint8) {
	switch size {
	case 1:
		st8(h, uint8(v))
	case 2:
		st16(h, uint16(v))
	case 4:
		st32(h, uint32(v))
	default:
		st64(h, v)
	}
}

// loadSys reads as descriptor tables and the like are read, at any CPL: by an
// implicit supervisor-mode access, which EFLAGS.AC does not save from SMAP (SDM
// vol. 3A §4.6.1).
func (c *CPU) loadSys(la uint64, size uint8) (uint64, bool) {
	return c.loadSlow(la, size, c.implicitMode())
}

// storeSys is the same for a write.
func (c *CPU) storeSys(la, v uint64, size uint8) bool {
	return c.storeSlow(la, v, size, c.implicitMode())
}

func (c *CPU) implicitMode() int {
	if c.s.CR4&cr4SMAP != 0 {
		return tlbSMAP
	}
	return tlbSup
}

// peek reads code or data to be shown.
func (c *CPU) peek(la uint64) (byte, bool) {
	v, ok := c.loadSlow(c.wrap(la), 1, tlbSup)
	return byte(v), ok
}

// checkAlignment raises #AC for an access of user mode that is not aligned (SDM
// vol. 3A §6.15, "Interrupt 17"), with c.aligning. 16 bytes that no instruction
// wants aligned are two times 8 here, which the SDM leaves to the processor; 10
// are a double extended-precision number, other sizes are looked at by parts.
func (c *CPU) checkAlignment(la uint64, size uint8, m int) bool {
	if m != tlbUser {
		return true
	}
	mask := uint64(0)
	switch size {
	case 2, 4, 8:
		mask = uint64(size) - 1
	case 10, 16:
		mask = 7
	}
	if la&mask != 0 {
		return c.faultErr(vecAC, 0)
	}
	return true
}

// loadSlow is load without a TLB hit for the fast path, in TLB mode m.
func (c *CPU) loadSlow(la uint64, size uint8, m int) (uint64, bool) {
	if !c.checkLinear(la, size) || c.aligning && !c.checkAlignment(la, size, m) {
		return 0, false
	}
	if c.dataBreaks {
		c.checkAccess(la, size, 1<<breakAccess)
	}
	if n := 4096 - la&0xfff; n < uint64(size) {
		return c.loadSplit(la, size, uint8(n), m)
	}
	e := c.slot.modes[m].entryAt(la >> 12 & (TLBSize - 1))
	if off := la ^ e.Read; off < 4096 {
		return ldn(e.Host+off, size), true
	}
	gpa, h, ok := c.translate(la, accRead, m)
	if !ok {
		return 0, false
	}
	if h == 0 {
		return c.mmioRead(gpa, size), true
	}
	return ldn(h, size), true
}

// checkLinear raises #GP or #SS for an address that is not canonical. Addresses
// below 4 GiB always are.
func (c *CPU) checkLinear(la uint64, size uint8) bool {
	if la >= 1<<47-16 && (!canonical(la) || !canonical(la+uint64(size)-1)) {
		if c.stackAccess {
			return c.faultErr(vecSS, 0)
		}
		return c.faultErr(vecGP, 0)
	}
	return true
}

// loadSplit reads across a page boundary: n bytes on the first page.
func (c *CPU) loadSplit(la uint64, size, n uint8, m int) (uint64, bool) {
	// Touch both pages first: MMIO must not be read before a fault is known.
	if _, _, ok := c.translate(la, accRead, m); !ok {
		return 0, false
	}
	if _, _, ok := c.translate(c.wrap(la+uint64(n)), accRead, m); !ok {
		return 0, false
	}
	var v uint64
	for i := uint8(0); i < size; i++ {
		b, ok := c.loadSlow(c.wrap(la+uint64(i)), 1, m)
		if !ok {
			return 0, false
		}
		v |= b << (8 * i)
	}
	return v, true
}

// wrap truncates a linear address outside 64-bit mode.
func (c *CPU) wrap(la uint64) uint64 {
	if c.s.EFER&eferLMA == 0 {
		return la & 0xffffffff
	}
	return la
}

// store writes size (1, 2, 4 or 8) bytes at the linear address la.
func (c *CPU) store(la, v uint64, size uint8) bool {
	e := c.s.entry(la)
	if off := la ^ e.Write; off <= 4096-uint64(size) {
		stn(e.Host+off, v, size)
		return true
	}
	return c.storeSlow(la, v, size, c.tlbMode)
}

func (c *CPU) storeSlow(la, v uint64, size uint8, m int) bool {
	if !c.checkLinear(la, size) || c.aligning && !c.checkAlignment(la, size, m) {
		return false
	}
	if c.dataBreaks {
		c.checkAccess(la, size, 1<<breakAccess|1<<breakWrite)
	}
	if n := 4096 - la&0xfff; n < uint64(size) {
		return c.storeSplit(la, v, size, uint8(n), m)
	}
	gpa, h, ok := c.translate(la, accWrite, m)
	if !ok {
		return false
	}
	if h == 0 {
		c.mmioWrite(gpa, v, size)
		return true
	}
	stn(h, v, size)
	c.wrote(gpa, uint64(size))
	return true
}

func (c *CPU) storeSplit(la, v uint64, size, n uint8, m int) bool {
	if _, _, ok := c.translate(la, accWrite, m); !ok {
		return false
	}
	if _, _, ok := c.translate(c.wrap(la+uint64(n)), accWrite, m); !ok {
		return false
	}
	for i := uint8(0); i < size; i++ {
		if !c.storeSlow(c.wrap(la+uint64(i)), v>>(8*i), 1, m) {
			return false
		}
	}
	return true
}

// probeWrite makes sure that size bytes at la can be written, so that a read,
// modify and write instruction faults before it changes anything, with the
// error code of a write.
func (c *CPU) probeWrite(la uint64, size uint8) bool {
	e := c.s.entry(la)
	if off := la ^ e.Write; off <= 4096-uint64(size) {
		return true
	}
	if !c.checkLinear(la, size) || c.aligning && !c.checkAlignment(la, size, c.tlbMode) {
		return false
	}
	if _, _, ok := c.translate(la, accWrite, c.tlbMode); !ok {
		return false
	}
	if n := 4096 - la&0xfff; n < uint64(size) {
		if _, _, ok := c.translate(c.wrap(la+n), accWrite, c.tlbMode); !ok {
			return false
		}
	}
	return true
}

// hostWrite returns the host address for an atomic access of size bytes at la
// on one page of memory, or 0 with ok if it is MMIO or crosses a page.
func (c *CPU) hostWrite(la uint64, size uint8) (h uint64, ok bool) {
	e := c.s.entry(la)
	if off := la ^ e.Write; off <= 4096-uint64(size) {
		return e.Host + off, true
	}
	if !c.probeWrite(la, size) {
		return 0, false
	}
	if 4096-la&0xfff < uint64(size) {
		return 0, true
	}
	gpa, h, ok := c.translate(la, accWrite, c.tlbMode)
	if c.dataBreaks {
		c.checkAccess(la, size, 1<<breakAccess|1<<breakWrite)
	}
	if ok && h != 0 {
		c.willWrite(gpa, uint64(size))
	}
	return h, ok
}

func (c *CPU) mmioRead(gpa uint64, size uint8) uint64 {
	if v, ok := c.apicRead(gpa, size); ok {
		return v
	}
	v := zeroExtend(c.io().MMIORead(gpa, int(size)), size)
	c.traceIO("read", gpa, v, size)
	return v
}

func (c *CPU) mmioWrite(gpa, v uint64, size uint8) {
	if c.apicWrite(gpa, v, size) {
		return
	}
	c.traceIO("write", gpa, v, size)
	c.io().MMIOWrite(gpa, int(size), zeroExtend(v, size))
}
