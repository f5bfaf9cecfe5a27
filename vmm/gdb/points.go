package gdb

import (
	"errors"
	"fmt"
	"slices"

	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// point is a breakpoint that the engine watches for.
type point struct {
	vcpu.Point
	soft bool // the debugger asked for one in memory (Z0)
	read bool // it wants loads alone (Z3)
}

// patch is an INT3 in guest memory.
type patch struct {
	addr     uint64
	orig     byte
	physical uint64
}

const int3 = 0xcc

// Types of breakpoints in Z and z (Debugging with GDB, E.2).
const (
	zSoftware = iota
	zHardware
	zWrite
	zRead
	zAccess
)

var (
	errNoMemory    = errors.New("there is no RAM at the address")
	errUnsupported = errors.New("not supported")
)

// maxPoints bounds what a debugger can ask for.
const maxPoints = 1024

// insert is the request Z.
func (ses *session) insert(typ int, addr, kind uint64) error {
	d := ses.debugger(ses.cpu)
	p := point{Point: vcpu.Point{Address: addr}}
	switch {
	case d == nil || typ > zAccess:
		return errUnsupported
	case typ == zSoftware && !d.AnyAddress():
		return ses.patch(addr)
	case typ == zSoftware:
		p.soft = true
	case typ >= zWrite:
		if kind != 1 && kind != 2 && kind != 4 && kind != 8 || addr%kind != 0 {
			return errUnsupported
		}
		p.Kind, p.Len, p.read = vcpu.BreakAccess, uint8(kind), typ == zRead
		if typ == zWrite {
			p.Kind = vcpu.BreakWrite
		}
	}
	if slices.Contains(ses.points, p) {
		return nil // an insertion that is repeated counts once
	}
	if len(ses.points) >= maxPoints {
		return vcpu.ErrTooManyPoints
	}
	ses.points = append(ses.points, p)
	// Try it out, so that the debugger is told of too many at once.
	if err := d.SetDebug(&vcpu.Debug{Step: true, Points: ses.enginePoints()}); err != nil {
		ses.points = ses.points[:len(ses.points)-1]
		return err
	}
	return nil
}

// remove is the request z.
func (ses *session) remove(typ int, addr, kind uint64) {
	for i, p := range ses.patches {
		if typ == zSoftware && p.addr == addr {
			ses.unpatch(i)
			return
		}
	}
	ses.points = slices.DeleteFunc(ses.points, func(p point) bool {
		if p.Address != addr {
			return false
		}
		switch typ {
		case zSoftware, zHardware:
			return p.Kind == vcpu.BreakExec && p.soft == (typ == zSoftware)
		case zWrite:
			return p.Kind == vcpu.BreakWrite && uint64(p.Len) == kind
		}
		return p.Kind == vcpu.BreakAccess && uint64(p.Len) == kind && p.read == (typ == zRead)
	})
}

func (ses *session) enginePoints() (l []vcpu.Point) {
	for _, p := range ses.points {
		l = append(l, p.Point)
	}
	return l
}

// patch writes an INT3 to guest memory.
func (ses *session) patch(addr uint64) error {
	if ses.patched(addr) {
		return nil
	}
	if len(ses.patches) >= maxPoints {
		return vcpu.ErrTooManyPoints
	}
	sp, err := ses.space()
	if err != nil {
		return err
	}
	b, gpa := sp.bytes(addr, true)
	if b == nil {
		return errNoMemory
	}
	ses.patches = append(ses.patches, patch{addr, b[0], uint64(gpa)})
	b[0] = int3
	sp.mem.MarkWritten(gpa, 1)
	return nil
}

// unpatch undoes patch i, unless the guest has overwritten it.
func (ses *session) unpatch(i int) {
	p := ses.patches[i]
	ses.patches = slices.Delete(ses.patches, i, i+1)
	sp := space{mem: ses.s.target.Memory(), physical: true}
	if b, gpa := sp.bytes(p.physical, true); b != nil && b[0] == int3 {
		b[0] = p.orig
		sp.mem.MarkWritten(gpa, 1)
	}
}

// patched reports whether the INT3 at addr is ours.
func (ses *session) patched(addr uint64) bool {
	return slices.ContainsFunc(ses.patches, func(p patch) bool { return p.addr == addr })
}

// unpatched shows b, which was read at addr, as the guest wrote it.
func (ses *session) unpatched(b []byte, addr uint64) {
	for _, p := range ses.patches {
		if off := p.addr - addr; !ses.physical && off < uint64(len(b)) && b[off] == int3 {
			b[off] = p.orig
		}
	}
}

// breakReason is the part of a stop reply for a break- or watchpoint.
func (ses *session) breakReason(e vcpu.Exit) string {
	soft := e.Stop == vcpu.StopTrap
	for _, p := range ses.points {
		if p.Address != e.Address || (p.Kind == vcpu.BreakExec) != (e.Stop == vcpu.StopBreak) {
			continue
		}
		switch {
		case p.soft:
			soft = true
		case p.Kind == vcpu.BreakWrite:
			return fmt.Sprintf("watch:%x;", p.Address)
		case p.Kind == vcpu.BreakAccess && p.read:
			return fmt.Sprintf("rwatch:%x;", p.Address)
		case p.Kind == vcpu.BreakAccess:
			return fmt.Sprintf("awatch:%x;", p.Address)
		}
	}
	switch {
	case soft && ses.swbreak:
		return "swbreak:;"
	case !soft && ses.hwbreak && e.Stop == vcpu.StopBreak:
		return "hwbreak:;"
	}
	return ""
}
