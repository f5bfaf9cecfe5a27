package soft

import (
	"fmt"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The functions here are the only ones that turn host addresses into memory
// accesses. The addresses come from TLB entries, which are filled from
// mem.Region alone, or from the mapped State.

func hostPtr(a uint64) unsafe.Pointer { return unsafe.Add(unsafe.Pointer(nil), a) }

func ld8(a uint64) uint8               { return *(*uint8)(unsafe.Add(unsafe.Pointer(nil), a)) }
func ld16(a uint64) uint16             { return *(*uint16)(unsafe.Add(unsafe.Pointer(nil), a)) }
func ld32(a uint64) uint32             { return *(*uint32)(unsafe.Add(unsafe.Pointer(nil), a)) }
func ld64(a uint64) uint64             { return *(*uint64)(unsafe.Add(unsafe.Pointer(nil), a)) }
func st8(a uint64, v uint8)            { *(*uint8)(unsafe.Add(unsafe.Pointer(nil), a)) = v }
func st16(a uint64, v uint16)          { *(*uint16)(unsafe.Add(unsafe.Pointer(nil), a)) = v }
func st32(a uint64, v uint32)          { *(*uint32)(unsafe.Add(unsafe.Pointer(nil), a)) = v }
func st64(a uint64, v uint64)          { *(*uint64)(unsafe.Add(unsafe.Pointer(nil), a)) = v }
func hostBytes(a uint64, n int) []byte { return unsafe.Slice((*byte)(hostPtr(a)), n) }

// hostAddr is the address of b's first byte.
func hostAddr(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }

// entry is the TLB entry of the page of va.
func (s *State) entry(va uint64) *TLBEntry {
	return (*TLBEntry)(unsafe.Add(unsafe.Pointer(nil), s.TLB+va>>12&(TLBSize-1)*32))
}

func (t *tlb) entryAt(i uint64) *TLBEntry {
	return (*TLBEntry)(unsafe.Add(unsafe.Pointer(nil), t.addr+i*32))
}

// r8 is byte register off: 8*register, plus 1 for AH, CH, DH and BH.
func (s *State) r8(off uint8) *uint8 {
	return (*uint8)(unsafe.Add(unsafe.Pointer(&s.R), off&127))
}

func (s *State) r16(r uint8) *uint16 { return (*uint16)(unsafe.Pointer(&s.R[r&15])) }

// addr is the state's own address.
func (s *State) addr() uint64 { return uint64(uintptr(unsafe.Pointer(s))) }

// vexArgs is where VEX instructions have their operands: aligned as the strictest
// of them wants its memory operand.
func (s *State) vexArgs() *vexArgs { return (*vexArgs)(unsafe.Pointer(&s.Scratch)) }

func (s *State) scratchAddr() uint64 { return uint64(uintptr(unsafe.Pointer(&s.Scratch))) }

// xmmBytes is the low n bytes of a vector register.
func (s *State) xmmBytes(r uint8, n int) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(&s.XMM[r&15])), n)
}

const (
	stateSize  = (unsafe.Sizeof(State{}) + 4095) &^ 4095
	tlbBytes   = TLBSize * 32
	arenaSize  = stateSize + (tlbSlots*tlbModes+1)*tlbBytes
	guardSize  = 1 << 16
	arenaFirst = 0x2000_0000
	arenaLast  = 0x7000_0000
)

// newArena maps the State and translation buffers of one CPU, with guard
// regions on both sides, below 2 GiB if there is room.
func newArena() (*State, []byte, error) {
	const total = arenaSize + 2*guardSize
	arenasMu.Lock()
	defer arenasMu.Unlock()
	if n := len(freeArenas); n > 0 {
		b := freeArenas[n-1]
		freeArenas = freeArenas[:n-1]
		return (*State)(unsafe.Pointer(&b[guardSize])), b, nil
	}
	for at := uintptr(arenaFirst); at < arenaLast; at += 1 << 24 {
		p, err := unix.MmapPtr(-1, 0, hostPtr(uint64(at)), total, unix.PROT_NONE,
			unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE|unix.MAP_FIXED_NOREPLACE)
		if err == nil {
			return arenaAt(p, total)
		}
	}
	p, err := unix.MmapPtr(-1, 0, nil, total, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, nil, fmt.Errorf("reserve memory for a software CPU: %w", err)
	}
	return arenaAt(p, total)
}

func arenaAt(p unsafe.Pointer, total uintptr) (*State, []byte, error) {
	b := unsafe.Slice((*byte)(p), total)
	if err := unix.Mprotect(b[guardSize:guardSize+arenaSize], unix.PROT_READ|unix.PROT_WRITE); err != nil {
		_ = unix.MunmapPtr(p, total)
		return nil, nil, fmt.Errorf("reserve memory for a software CPU: %w", err)
	}
	return (*State)(unsafe.Add(p, guardSize)), b, nil
}

// freeArenas are the arenas of CPUs that are gone, without memory. They stay
// mapped because a timer's signal may be on its way to a State.Exit.
var (
	arenasMu   sync.Mutex
	freeArenas [][]byte
)

func freeArena(b []byte) {
	if b == nil {
		return
	}
	_ = unix.Madvise(b[guardSize:guardSize+arenaSize], unix.MADV_DONTNEED) // zeroes it, and cannot fail
	arenasMu.Lock()
	freeArenas = append(freeArenas, b)
	arenasMu.Unlock()
}

func (s *State) fxAddr() uint64 { return uint64(uintptr(unsafe.Pointer(&s.FX))) }
