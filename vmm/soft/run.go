package soft

import (
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// exec runs a block from its start. On stFault State.RIP is the address of the
// instruction at fault.
func (c *CPU) exec(b *block) int {
	ops := c.opsOf(b)
	if ops == nil {
		return stIndirect
	}
	return c.execOps(b, ops)
}

func (c *CPU) execOps(b *block, ops []op) int {
	s := c.s
	s.R[regBlock] = s.RIP
	c.blk = b
	for i := range ops {
		o := &ops[i]
		if st := o.fn(c, o); st != stNext {
			s.Count += uint64(i + 1)
			if st == stFault {
				s.RIP = s.R[regBlock] + uint64(o.pos)
				s.Count--
			}
			return st
		}
	}
	panic("soft: block without an end")
}

// pending reports whether the loop must look at events before going on.
func (c *CPU) pending() bool { return atomic.LoadUint32(&c.s.Exit) != 0 }

// loop executes guest code until something needs the machine's attention.
func (c *CPU) loop() vcpu.Exit {
	s := c.s
	for {
		// The instruction behind STI or MOV SS runs before any interrupt, and no
		// more than that one if there is an interrupt: CLI may follow.
		one := false
		if c.shadow && !c.halted {
			c.shadow = false
			one = atomic.LoadUint32(&s.Exit)&exitIntr != 0
			if c.clearExit(exitFlush) {
				c.takeNotices()
			}
		} else if c.halted || atomic.LoadUint32(&s.Exit) != 0 || s.Count >= s.Deadline {
			c.shadow = false
			if ex, stop := c.events(); stop {
				return ex
			}
			if c.halted {
				continue
			}
		}
		if c.stepping() {
			if ex, stop := c.step(); stop {
				return ex
			}
			continue
		}
		switch st := c.some(one); st {
		case stFault:
			if ex, stop := c.except(); stop {
				return ex
			}
		case stExit:
			if c.trapDue {
				if ex, stop := c.singleStepped(0); stop {
					return ex
				}
			}
			if ex, stop := c.debug.stopped(); stop {
				return ex
			}
			if c.shutdown {
				c.shutdown = false
				return vcpu.Exit{Reason: vcpu.ExitShutdown, Detail: c.dump(exception{})}
			}
			s.Flags &^= flagRF
			c.rearm()
		}
	}
}

// some runs code at State.RIP: one instruction, or as much as goes.
func (c *CPU) some(one bool) int {
	if one {
		return c.single()
	}
	b := c.lookup()
	switch {
	case b == nil:
		return stFault
	case c.vm.tracing&TraceExec != 0:
		return c.traced(b)
	}
	return c.chain(b)
}

// chain runs b and its successors as long as they are known and nothing is pending.
func (c *CPU) chain(b *block) int {
	s := c.s
	for {
		st := c.runTier(b)
		switch st {
		case stTaken, stFall:
			if atomic.LoadUint32(&s.Exit) != 0 || s.Count >= s.Deadline {
				return st
			}
			if n := c.successor(b, st-stTaken); n != nil {
				b = n
				continue
			}
			n := c.lookup()
			if n == nil {
				return stFault
			}
			if b.linkable() { // if b is gone by now, so that this is another one's, it costs a look at it
				b.links[st-stTaken] = c.blocks.index(n)
			}
			b = n
		case stIndirect:
			if atomic.LoadUint32(&s.Exit) != 0 || s.Count >= s.Deadline {
				return st
			}
			if b = c.lookup(); b == nil {
				return stFault
			}
		default:
			return st
		}
	}
}

// rearm looks at interrupts again after an instruction that may have enabled them.
func (c *CPU) rearm() {
	if c.intrWaiting && c.s.Flags&flagIF != 0 {
		c.intrWaiting = false
		atomic.OrUint32(&c.s.Exit, exitIntr)
	}
}

// single executes exactly one instruction (a whole REP until an event).
func (c *CPU) single() int {
	c.noCache = true
	b := c.one()
	c.noCache = false
	if b == nil {
		return stFault
	}
	return c.execOps(b, c.making.ops)
}

// one builds an uncached block of one instruction at State.RIP.
func (c *CPU) one() *block {
	s := c.s
	la := s.RIP
	if c.mode != decode.Mode64 {
		if s.RIP > uint64(s.Seg[vcpu.CS].Limit) {
			c.faultErr(vecGP, 0)
			return nil
		}
		la = (la + s.Seg[vcpu.CS].Base) & 0xffffffff
	}
	gpa, host, ok := c.fetchPage(la)
	if !ok {
		return nil
	}
	c.maxOps = 1
	b := c.build(la, gpa, blockKey{host, c.modeKey()})
	c.maxOps = maxOps
	return b
}

// step executes one instruction under TF, breakpoints or a debugger.
func (c *CPU) step() (vcpu.Exit, bool) {
	if c.atBreak(c.s.RIP) {
		return c.debug.stopped()
	}
	ex, stop := c.stepGuest()
	if d := c.debug; d != nil && !stop && (d.Step || c.breakHits&breakWatch != 0) {
		if c.breakHits&breakWatch == 0 {
			d.stop = vcpu.Exit{Reason: vcpu.ExitDebug, Stop: vcpu.StopStep, Address: c.codeAddress(c.s.RIP)}
		}
		return d.stop, true
	}
	return ex, stop
}

// stepGuest is step with what the guest can see of it.
func (c *CPU) stepGuest() (vcpu.Exit, bool) {
	s := c.s
	c.breakHits = 0
	if c.execBreakpoint(c.codeAddress(s.RIP)) {
		return c.except()
	}
	tf := s.Flags & flagTF
	s.Flags &^= flagRF
	st := c.single()
	if st == stFault {
		return c.except()
	}
	if st == stExit {
		c.rearm()
	}
	traps := c.breakHits &^ breakWatch
	if c.trapDue || tf != 0 && (st != stExit || s.Flags&flagTF != 0) {
		return c.singleStepped(traps)
	}
	return c.trap(traps)
}

// singleStepped raises the trap of TF, with others.
func (c *CPU) singleStepped(traps uint64) (vcpu.Exit, bool) {
	c.trapDue = false
	return c.trap(traps | dr6BS)
}

// trap raises #DB behind an instruction, if there is a reason in the bits of DR6.
func (c *CPU) trap(traps uint64) (vcpu.Exit, bool) {
	if traps == 0 {
		return vcpu.Exit{}, false
	}
	c.s.DR[6] = c.s.DR[6]&^0xf | traps
	c.fault(vecDB)
	return c.except()
}

// except delivers the pending exception.
func (c *CPU) except() (vcpu.Exit, bool) {
	c.stackAccess = false
	rip := c.s.RIP
	e := c.exc
	c.remember(trailException, e.vec, e.err)
	if c.vm.tracing&TraceInt != 0 {
		c.vm.trace("cpu %d exception %d error %#x cr2 %#x rip %#x rsp %#x", c.id, e.vec, e.err, e.cr2, rip, c.s.R[vcpu.RSP])
	}
	if c.deliver() {
		return vcpu.Exit{}, false
	}
	return vcpu.Exit{Reason: vcpu.ExitShutdown, Detail: c.dump(e)}, true
}

// dump describes the CPU for people: registers and the code at RIP.
func (c *CPU) dump(e exception) string {
	s := c.s
	var b strings.Builder
	fmt.Fprintf(&b, "exception %d error %#x\n", e.vec, e.err)
	names := [...]string{"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"}
	for i, n := range names {
		fmt.Fprintf(&b, "%3s %016x", n, s.R[i])
		b.WriteByte(" \n"[boolBit(i%4 == 3)])
	}
	fmt.Fprintf(&b, "rip %016x flags %08x cpl %d count %d\n", s.RIP, s.rflags(), s.CPL, s.Count)
	fmt.Fprintf(&b, "cr0 %08x cr2 %016x cr3 %016x cr4 %08x efer %04x\n", s.CR0, s.CR2, s.CR3, s.CR4, s.EFER)
	for i, n := range [...]string{"es", "cs", "ss", "ds", "fs", "gs", "ldt", "tr"} {
		g := s.Seg[i]
		fmt.Fprintf(&b, "%3s %04x base %016x limit %08x attr %05x\n", n, g.Selector, g.Base, g.Limit, g.Attr)
	}
	c.writeTrail(&b)
	fmt.Fprintf(&b, "gdt %016x+%04x idt %016x+%04x\ncode", s.GDT.Base, s.GDT.Limit, s.IDT.Base, s.IDT.Limit)
	la := c.codeAddress(s.RIP)
	for i := range uint64(16) {
		v, ok := c.peek(la + i)
		if !ok {
			break
		}
		fmt.Fprintf(&b, " %02x", v)
	}
	return b.String()
}
