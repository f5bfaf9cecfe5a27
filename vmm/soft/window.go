package soft

import (
	"runtime"

	"github.com/gvmspawn/gvmspawn/vmm/mem"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// Windows are mappings of host files. A page whose file was truncated raises
// SIGBUS, so windows have no entries in the translation buffers and every access
// comes here, where the signal becomes a failed access: Run then returns
// ExitFault, and the instruction starts anew when the machine has put
// something in the page's place.

// inWindow reports whether gpa is in a mem.Window.
func (vm *VM) inWindow(gpa uint64) bool {
	if !vm.windows {
		return false
	}
	_, kind := vm.host(gpa)
	return kind == mem.Window
}

// memoryFault reports whether r, a recovered panic, is a fault of the host's
// memory, and where; other panics go on.
func memoryFault(r any) (addr uint64) {
	if e, ok := r.(interface {
		runtime.Error
		Addr() uintptr
	}); ok {
		return uint64(e.Addr())
	}
	panic(r)
}

// hostFault records that there is no memory behind gpa.
func (c *CPU) hostFault(gpa uint64) bool {
	c.exc = exception{host: true, cr2: gpa}
	return false
}

func (c *CPU) windowLoad(gpa, h uint64, size uint8) (v uint64, ok bool) {
	defer func() {
		if r := recover(); r != nil {
			memoryFault(r)
			v, ok = 0, c.hostFault(gpa)
		}
	}()
	return ldn(h, size), true
}

func (c *CPU) windowStore(gpa, h, v uint64, size uint8) (ok bool) {
	defer func() {
		if r := recover(); r != nil {
			memoryFault(r)
			ok = c.hostFault(gpa)
		}
	}()
	stn(h, v, size)
	return true
}

// codeBytes returns n bytes of code, on one page.
func (c *CPU) codeBytes(gpa, h uint64, n int) (b []byte, ok bool) {
	b = hostBytes(h, n)
	if !c.vm.inWindow(gpa) {
		return b, true
	}
	defer func() {
		if r := recover(); r != nil {
			memoryFault(r)
			ok = c.hostFault(gpa)
		}
	}()
	return append([]byte(nil), b...), true
}

// lostWindow is deferred by Run. Atomic instructions work on a window's memory
// directly: a fault there starts the instruction anew, too. They are all
// generic, so CPU.ip is right.
func (c *CPU) lostWindow(ex *vcpu.Exit) {
	r := recover()
	if r == nil {
		return
	}
	addr := memoryFault(r)
	for i := range c.vm.regions {
		g := &c.vm.regions[i]
		if off := addr - g.host; g.kind == mem.Window && off < g.size {
			c.s.RIP = c.ip
			c.s.FRes, c.s.FAux = c.lockedFlags[0], c.lockedFlags[1]
			*ex = vcpu.Exit{Reason: vcpu.ExitFault, Address: g.base + off}
			return
		}
	}
	panic(r)
}
