package soft

import (
	"fmt"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// jitContext is what translated code keeps beside State. It is mapped below
// 2 GiB, so that code reaches it by absolute addresses. No Go pointers.
type jitContext struct {
	Resume uint64 // where enter goes
	ExitPC uint64 // where the code left: address of the exit's number
	Flags  uint64 // arithmetic flags: byte 0 is OF, byte 1 what LAHF gives
	Tmp    uint64
	HostCS uint32 // Go's MXCSR while the guest's is loaded
	Vec    uint32 // vecNone, vecXMM, vecYMM
	Want   uint32 // what of them enter loads
	Intr   uint32 // copy of CPU.intrWaiting
	// X87 is 1 while the guest's x87 state is in the host's registers; WantX87, if
	// enter loads it.
	X87, WantX87 uint32
	Tmp2         uint64
	Groups       [maxGroups]uint64 // host addresses of the groups of the running span
	// KernelGS is a copy of CPU.kernelGS, TLBs the addresses of the
	// translation buffers with and without access to user pages.
	KernelGS uint64
	TLBs     [2]uint64
	// Page is the address of the running page, for code that runs anywhere.
	Page uint64
	// Key changes with the mappings of addresses: a translation whose stamp has
	// it is still where it was.
	Key uint64
	// Jump maps addresses to translated code for indirect branches, apart for
	// supervisor and user mode.
	Jump [2][jumpSlots]jumpSlot
	// Stamps are of translations with far entries: the key under which the page
	// was last seen to be mapped to the code's memory; for code that runs
	// anywhere exclusive-or the page's address.
	Stamps [maxStamps]uint64
}

// jumpSlot is one entry; code is an entry that makes sure of the page's translation.
type jumpSlot struct{ la, code uint64 }

const (
	jumpSlots = 1 << 15
	maxStamps = 1 << 18
)

// Offsets of the fields that translated code uses.
var (
	offFlags    = uint64(unsafe.Offsetof(State{}.Flags))
	offTLB      = uint64(unsafe.Offsetof(State{}.TLB))
	offExit     = uint64(unsafe.Offsetof(State{}.Exit))
	offSeg      = uint64(unsafe.Offsetof(State{}.Seg))
	offSegBase  = uint64(unsafe.Offsetof(vcpu.Segment{}.Base))
	offSelector = uint64(unsafe.Offsetof(vcpu.Segment{}.Selector))
	segmentSize = uint64(unsafe.Sizeof(vcpu.Segment{}))
	offCRs      = [5]uint64{0: uint64(unsafe.Offsetof(State{}.CR0)), 2: uint64(unsafe.Offsetof(State{}.CR2)), 3: uint64(unsafe.Offsetof(State{}.CR3)), 4: uint64(unsafe.Offsetof(State{}.CR4))}
	offCount    = uint64(unsafe.Offsetof(State{}.Count))
	offDeadline = uint64(unsafe.Offsetof(State{}.Deadline))
	offMXCSR    = uint64(unsafe.Offsetof(State{}.MXCSR))
	offXMM      = uint64(unsafe.Offsetof(State{}.XMM))
	offFX       = uint64(unsafe.Offsetof(State{}.FX))
	offXHead    = uint64(unsafe.Offsetof(State{}.FXHead))

	jxResume   = uint64(unsafe.Offsetof(jitContext{}.Resume))
	jxExitPC   = uint64(unsafe.Offsetof(jitContext{}.ExitPC))
	jxFlags    = uint64(unsafe.Offsetof(jitContext{}.Flags))
	jxTmp      = uint64(unsafe.Offsetof(jitContext{}.Tmp))
	jxHostCS   = uint64(unsafe.Offsetof(jitContext{}.HostCS))
	jxVec      = uint64(unsafe.Offsetof(jitContext{}.Vec))
	jxWant     = uint64(unsafe.Offsetof(jitContext{}.Want))
	jxIntr     = uint64(unsafe.Offsetof(jitContext{}.Intr))
	jxPage     = uint64(unsafe.Offsetof(jitContext{}.Page))
	jxX87      = uint64(unsafe.Offsetof(jitContext{}.X87))
	jxWantX87  = uint64(unsafe.Offsetof(jitContext{}.WantX87))
	jxTmp2     = uint64(unsafe.Offsetof(jitContext{}.Tmp2))
	jxGroups   = uint64(unsafe.Offsetof(jitContext{}.Groups))
	jxKernelGS = uint64(unsafe.Offsetof(jitContext{}.KernelGS))
	jxTLBs     = uint64(unsafe.Offsetof(jitContext{}.TLBs))
	jxKey      = uint64(unsafe.Offsetof(jitContext{}.Key))
	jxJump     = uint64(unsafe.Offsetof(jitContext{}.Jump))
	jxStamps   = uint64(unsafe.Offsetof(jitContext{}.Stamps))
)

func (x *jitContext) addr() uint64 { return uint64(uintptr(unsafe.Pointer(x))) }

// newJITContext maps a context below 2 GiB.
func newJITContext() (*jitContext, []byte, error) {
	const size = (unsafe.Sizeof(jitContext{}) + 4095) &^ 4095
	for at := uintptr(arenaLast); at < 0x7f00_0000; at += 1 << 20 {
		p, err := unix.MmapPtr(-1, 0, hostPtr(uint64(at)), size, unix.PROT_READ|unix.PROT_WRITE,
			unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE|unix.MAP_FIXED_NOREPLACE)
		if err == nil {
			return (*jitContext)(p), unsafe.Slice((*byte)(p), size), nil
		}
	}
	return nil, nil, fmt.Errorf("no room below 2 GiB")
}

// codeMemory is the memory of translated code: written through rw, executed at rx.
type codeMemory struct {
	rw, rxMap []byte
	rx        uint64
}

// newCodeMemory maps n bytes, once with all rights or, where the host forbids
// that, twice.
func newCodeMemory(n int) (codeMemory, error) {
	p, err := unix.MmapPtr(-1, 0, nil, uintptr(n), unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err == nil {
		b := unsafe.Slice((*byte)(p), n)
		return codeMemory{rw: b, rx: uint64(uintptr(p))}, nil
	}
	return newDualMemory(n)
}

// newDualMemory maps a memfd once writable and once executable.
func newDualMemory(n int) (codeMemory, error) {
	fd, err := unix.MemfdCreate("gvmspawn-code", unix.MFD_CLOEXEC)
	if err != nil {
		return codeMemory{}, fmt.Errorf("no memory file for code: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, int64(n)); err != nil {
		return codeMemory{}, err
	}
	rw, err := unix.Mmap(fd, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return codeMemory{}, err
	}
	rx, err := unix.Mmap(fd, 0, n, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_SHARED)
	if err != nil {
		_ = unix.Munmap(rw)
		return codeMemory{}, fmt.Errorf("this host allows no executable memory (SELinux execmem, MemoryDenyWriteExecute=): %w", err)
	}
	return codeMemory{rw: rw, rxMap: rx, rx: hostAddr(rx)}, nil
}

// hugePages asks for huge pages for the first n bytes, of which used are in use. It
// is no loss where the host has none.
func (m *codeMemory) hugePages(n, used int) {
	if m.rxMap != nil {
		return
	}
	_ = unix.Madvise(m.rw[:n&^4095], unix.MADV_HUGEPAGE)
	_ = unix.Madvise(m.rw[:used&^4095], unix.MADV_COLLAPSE) // Linux 6.1
}

func (m *codeMemory) free() {
	for _, b := range [][]byte{m.rw, m.rxMap} {
		if b != nil {
			_ = unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(b)), uintptr(len(b)))
		}
	}
	*m = codeMemory{}
}

func freeMap(b []byte) {
	if b != nil {
		_ = unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(b)), uintptr(len(b)))
	}
}

// hostGSBase reports whether the host lets programs write the base of GS: bit 1 of
// AT_HWCAP2 (Linux Documentation/arch/x86/x86_64/fsgs.rst).
var hostGSBase = func() bool {
	const atHWCAP2, fsgsbase = 26, 1 << 1
	aux, err := unix.Auxv()
	return err == nil && slices.ContainsFunc(aux, func(v [2]uintptr) bool { return v[0] == atHWCAP2 && v[1]&fsgsbase != 0 })
}()

// jitCall calls the code at entry. The code keeps the stack pointer and
// returns with RET; it may change every other register but FS and GS.
func jitCall(entry uint64)

//go:linkname entersyscall runtime.entersyscall
func entersyscall()

//go:linkname exitsyscall runtime.exitsyscall
func exitsyscall()

// runCode runs translated code as a system call does: the garbage collector
// and the scheduler do not wait for it.
//
//go:nosplit
func runCode(entry uint64) {
	entersyscall()
	jitCall(entry)
	exitsyscall()
}
