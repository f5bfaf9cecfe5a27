// Package lockstep finds the first block of code after which two runs of a
// deterministic machine differ, such as one by the translator and one by the
// interpreter. Each run is repeated with checkpoints that are closer together.
package lockstep

import (
	"fmt"
	"slices"
	"strings"

	"github.com/gvmspawn/gvmspawn/vmm/soft"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// Runner runs the machine once, from its start to its end or until f returns
// false, with [soft.VM.Checkpoints] from and every.
type Runner func(from, every uint64, f func(*soft.Checkpoint) bool) error

// steps are how many instructions lie between checkpoints: of a whole run, then
// within the interval that differs. The last is every block.
var steps = []uint64{2_000_000, 2_000, 1}

// Difference is where two runs part.
type Difference struct {
	// Last is the last checkpoint at which the two were the same, A and B are
	// the next ones. One that ended has Count 0.
	Last, A, B soft.Checkpoint
	// Every is the distance of checkpoints, 1 if they are all blocks. A
	// difference that goes away with closer ones is in how blocks follow each other.
	Every uint64
}

// Find runs a and b and returns their first difference, nil if there is none,
// and how many instructions a has executed.
func Find(a, b Runner) (*Difference, uint64, error) {
	var found *Difference
	from, total := uint64(0), uint64(0)
	for i, every := range steps {
		limit := ^uint64(0)
		if i > 0 {
			limit = max(found.A.Count, found.B.Count)
		}
		d, n, err := compare(a, b, from, every, limit)
		if err != nil {
			return nil, 0, err
		}
		if i == 0 {
			total = n
		}
		if d == nil {
			break
		}
		found = d
		from = d.Last.Count
	}
	return found, total, nil
}

// compare runs a and b with checkpoints in [from, limit].
func compare(a, b Runner, from, every, limit uint64) (*Difference, uint64, error) {
	var points []soft.Checkpoint
	err := a(from, every, func(c *soft.Checkpoint) bool {
		points = append(points, *c)
		return c.Count < limit
	})
	if err != nil {
		return nil, 0, err
	}
	n := 0
	var d *Difference
	err = b(from, every, func(c *soft.Checkpoint) bool {
		if n < len(points) && Equal(&points[n], c) {
			n++
			return c.Count < limit
		}
		d = &Difference{B: *c, Every: every}
		return false
	})
	if err != nil {
		return nil, 0, err
	}
	if d == nil && n < len(points) {
		d = &Difference{Every: every} // b ended before a
	}
	total := uint64(0)
	if len(points) > 0 {
		total = points[len(points)-1].Count
	}
	if d != nil {
		if n < len(points) {
			d.A = points[n]
		}
		if n > 0 {
			d.Last = points[n-1]
		}
	}
	return d, total, nil
}

// arithmetic are the flags CF, PF, AF, ZF, SF and OF. Translated code does not
// keep those that the next block overwrites; that others are wrong, the next
// branch shows.
const arithmetic = 0x8d5

// Equal reports whether two checkpoints are the same.
func Equal(a, b *soft.Checkpoint) bool {
	ra, rb := a.Registers, b.Registers
	ra.RFLAGS &^= arithmetic
	rb.RFLAGS &^= arithmetic
	return a.Count == b.Count && ra == rb && a.Vectors == b.Vectors
}

// String describes the difference for people.
func (d *Difference) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "the runs part behind instruction %d, RIP %#x, code % x (checkpoints every %d)\n",
		d.Last.Count, d.Last.Registers.RIP, d.Last.Code, d.Every)
	fmt.Fprintf(&b, "before: %s\n", describe(&d.Last))
	for _, l := range differences(&d.A, &d.B) {
		fmt.Fprintf(&b, "%s\n", l)
	}
	return b.String()
}

func describe(c *soft.Checkpoint) string {
	var b strings.Builder
	for _, f := range fields(&c.Registers) {
		fmt.Fprintf(&b, "%s=%x ", f.name, f.v)
	}
	return b.String()
}

// field is a register by its name.
type field struct {
	name string
	v    uint64
}

func fields(r *vcpu.Registers) (l []field) {
	for i, n := range strings.Fields("rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15") {
		l = append(l, field{n, r.GPR[i]})
	}
	l = append(l, field{"rip", r.RIP}, field{"rflags", r.RFLAGS})
	for i, n := range strings.Fields("es cs ss ds fs gs") {
		l = append(l, field{n, uint64(r.Seg[i].Selector)}, field{n + ".base", r.Seg[i].Base})
	}
	return append(l, field{"cr0", r.CR0}, field{"cr2", r.CR2}, field{"cr3", r.CR3}, field{"cr4", r.CR4}, field{"cr8", r.CR8}, field{"efer", r.EFER})
}

// differences lists what differs.
func differences(a, b *soft.Checkpoint) (l []string) {
	if a.Count != b.Count {
		l = append(l, fmt.Sprintf("instructions %d, %d", a.Count, b.Count))
	}
	fa, fb := fields(&a.Registers), fields(&b.Registers)
	for i := range fa {
		if fa[i] != fb[i] {
			l = append(l, fmt.Sprintf("%s %#x, %#x", fa[i].name, fa[i].v, fb[i].v))
		}
	}
	if a.Vectors != b.Vectors {
		l = append(l, "vector or floating point registers")
	}
	return slices.Clip(l)
}
