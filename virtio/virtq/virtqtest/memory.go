package virtqtest

import (
	"math/bits"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// minBuffer is the smallest piece the allocator hands out, in bytes.
const minBuffer = 64

// Memory is guest RAM with an allocator for the driver's rings and buffers.
// It belongs to one goroutine.
type Memory struct {
	*mem.Memory
	t    testing.TB
	next mem.GPA
	end  mem.GPA
	free [64][]mem.GPA // by log2 of the size
}

// NewMemory returns size bytes of RAM at address 0 that are unmapped when the
// test ends. The first 4 KiB are never handed out, so that a zero address
// stays visible in tests.
func NewMemory(t testing.TB, size uint64) *Memory {
	t.Helper()
	m := mem.New()
	if _, err := m.Add("test RAM", 0, size, mem.RAM); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return Use(t, m, 0x1000, mem.GPA(size))
}

// Use returns an allocator over [start, end) of memory that exists already.
// start is a multiple of 4096.
func Use(t testing.TB, m *mem.Memory, start, end mem.GPA) *Memory {
	return &Memory{Memory: m, t: t, next: start, end: end}
}

func sizeClass(n uint64) int { return bits.Len64(max(n, minBuffer) - 1) }

// Alloc returns the address of n zeroed bytes, aligned to n rounded up to a
// power of two, at most 4 KiB. It fails the test when the memory is used up.
func (m *Memory) Alloc(n uint64) mem.GPA {
	m.t.Helper()
	c := sizeClass(n)
	if l := m.free[c]; len(l) > 0 {
		gpa := l[len(l)-1]
		m.free[c] = l[:len(l)-1]
		clear(m.Bytes(gpa, 1<<c))
		return gpa
	}
	align := mem.GPA(min(uint64(1)<<c, 4096))
	gpa := (m.next + align - 1) &^ (align - 1)
	if gpa+1<<c > m.end {
		m.t.Fatalf("virtqtest: out of guest memory: %d bytes wanted at %#x of %#x", n, gpa, m.end)
	}
	m.next = gpa + 1<<c
	return gpa
}

// Free gives back what Alloc(n) returned.
func (m *Memory) Free(gpa mem.GPA, n uint64) {
	c := sizeClass(n)
	m.free[c] = append(m.free[c], gpa)
}

// Bytes is the RAM at [gpa, gpa+n); it fails the test if that is none.
func (m *Memory) Bytes(gpa mem.GPA, n uint64) []byte {
	b, err := m.Slice(gpa, n)
	if err != nil {
		m.t.Helper()
		m.t.Fatalf("virtqtest: %#x+%#x: %v", gpa, n, err)
	}
	return b
}
