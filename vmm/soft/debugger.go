package soft

import (
	"maps"

	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// A debugger's breakpoints are operations of their own at the head of blocks: a
// block ends before an instruction at the page offset of one, whatever page it
// is on, because blocks are shared by all pages that map their memory. Translated
// code leaves the operation to the interpreter. Watchpoints, and single-steps,
// run one instruction at a time.

// debugger is what the present debugger asked for; CPU.debug is nil without.
type debugger struct {
	*vcpu.Debug
	breaks  map[uint64]bool // addresses of BreakExec
	offsets map[uint16]bool // their offsets in a page
	watches []vcpu.Point
	met     bool // stop is for Run to return
	stop    vcpu.Exit
}

// breakWatch is the bit of CPU.breakHits for the debugger's watchpoints.
const breakWatch = 1 << 16

// AnyAddress is true: see vcpu.Debugger.
func (c *CPU) AnyAddress() bool { return true }

// SetDebug implements vcpu.Debugger.
func (c *CPU) SetDebug(d *vcpu.Debug) error {
	var next *debugger
	if d != nil {
		next = &debugger{Debug: d, breaks: map[uint64]bool{}, offsets: map[uint16]bool{}}
		for _, p := range d.Points {
			if p.Kind == vcpu.BreakExec {
				next.breaks[p.Address] = true
				next.offsets[uint16(p.Address&0xfff)] = true
			} else {
				next.watches = append(next.watches, p)
			}
		}
	}
	c.debug = next
	if !next.stepping() { // which uses no cached block
		if offsets := next.cuts(); !maps.Equal(offsets, c.cuts) {
			c.cuts = offsets
			c.dropCode()
		}
	}
	c.setDataBreaks()
	return nil
}

func (d *debugger) stepping() bool { return d != nil && d.Step }

// cuts are the offsets that blocks must not run over, nil for none.
func (d *debugger) cuts() map[uint16]bool {
	if d == nil || len(d.offsets) == 0 {
		return nil
	}
	return d.offsets
}

// watching reports whether there is a watchpoint.
func (d *debugger) watching() bool { return d != nil && len(d.watches) > 0 }

// watch notes that size bytes at la were read or, with write, written.
func (d *debugger) watch(la uint64, size uint8, write bool) bool {
	for _, p := range d.watches {
		if (write || p.Kind == vcpu.BreakAccess) && la < p.Address+uint64(p.Len) && p.Address < la+uint64(size) {
			d.stop = vcpu.Exit{Reason: vcpu.ExitDebug, Stop: vcpu.StopWatch, Address: p.Address}
			return true
		}
	}
	return false
}

// codeAddress is the linear address of an instruction of the present mode.
func (c *CPU) codeAddress(ip uint64) uint64 {
	if c.mode != decode.Mode64 {
		return (ip + c.s.Seg[vcpu.CS].Base) & 0xffffffff
	}
	return ip
}

// atBreak reports whether Run must end before the instruction at ip.
func (c *CPU) atBreak(ip uint64) bool {
	d := c.debug
	la := c.codeAddress(ip)
	if d == nil || d.Step || !d.breaks[la] {
		return false
	}
	d.met, d.stop = true, vcpu.Exit{Reason: vcpu.ExitDebug, Stop: vcpu.StopBreak, Address: la}
	return true
}

// stopped takes the debugger's stop away.
func (d *debugger) stopped() (vcpu.Exit, bool) {
	if d == nil || !d.met {
		return vcpu.Exit{}, false
	}
	d.met = false
	return d.stop, true
}

// opBreak is at the head of a block at a breakpoint's offset. It is no
// instruction.
func opBreak(c *CPU, _ *op) int {
	c.s.Count--
	if c.atBreak(c.s.R[regBlock]) {
		c.s.RIP = c.s.R[regBlock]
		return stExit
	}
	return stNext
}

// FPU implements vcpu.Debugger.
func (c *CPU) FPU(f *vcpu.FPU) error {
	c.saveFX((*[512]byte)(f), len(c.s.XMM))
	return nil
}

// SetFPU implements vcpu.Debugger. Reserved bits of MXCSR are ignored.
func (c *CPU) SetFPU(f *vcpu.FPU) error {
	b := [512]byte(*f)
	b[fxMXCSR+2], b[fxMXCSR+3] = 0, 0
	c.restoreFX(&b, len(c.s.XMM))
	return nil
}
