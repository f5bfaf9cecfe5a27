package soft

import (
	"encoding/binary"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// now is the machine's monotonic time in nanoseconds.
func (vm *VM) now() uint64 { return vm.clock.Now() }

// tsc is the CPU's time stamp counter: 1 GHz, so nanoseconds plus an offset.
func (c *CPU) tsc() uint64 { return c.vm.now() + c.tscOffset.Load() }

// addTSC moves the time stamp counter by d.
func (c *CPU) addTSC(d uint64) {
	c.tscOffset.Add(d)
	c.tscAdjust += d
	c.apic.TSCChanged()
	c.updatePvclock()
}

// updatePvclock writes struct pvclock_vcpu_time_info, if the guest asked for
// it (Linux Documentation/virt/kvm/x86/msr.rst). The TSC never changes its
// rate, so once is enough.
func (c *CPU) updatePvclock() {
	if c.pvclock&1 == 0 {
		return
	}
	var b [32]byte
	now := c.vm.now()
	c.pvVersion += 2
	binary.LittleEndian.PutUint32(b[0:], c.pvVersion)
	binary.LittleEndian.PutUint64(b[8:], now+c.tscOffset.Load())
	binary.LittleEndian.PutUint64(b[16:], now)
	binary.LittleEndian.PutUint32(b[24:], 1<<31) // nanoseconds = tsc << 1 * mul >> 32
	b[28] = 1                                    // tsc_shift
	b[29] = 1                                    // PVCLOCK_TSC_STABLE_BIT
	c.dmaWrite(c.pvclock&^1, b[:])
}

// writeWallClock writes struct pvclock_wall_clock: the time of day when the
// machine's clock was zero.
func (vm *VM) writeWallClock(v uint64) {
	vm.wallClock.Store(v)
	boot := vm.bootTime
	if boot.IsZero() {
		boot = time.Now().Add(-time.Duration(vm.now()))
	}
	var b [12]byte
	binary.LittleEndian.PutUint32(b[0:], 2)
	binary.LittleEndian.PutUint32(b[4:], uint32(boot.Unix()))
	binary.LittleEndian.PutUint32(b[8:], uint32(boot.Nanosecond()))
	_ = vm.mem.WriteAt(b[:], mem.GPA(v))
}

// dmaWrite writes guest memory outside of any instruction. An address without
// RAM is the guest's mistake and is ignored.
func (c *CPU) dmaWrite(gpa uint64, b []byte) { _ = c.vm.mem.WriteAt(b, mem.GPA(gpa)) }

// PauseClock stops the guest's clocks while all CPUs are paused.
func (vm *VM) PauseClock() error {
	if vm.hostClock != nil {
		vm.hostClock.Pause()
	}
	return nil
}

// ResumeClock lets the clocks go on from where they stopped.
func (vm *VM) ResumeClock() error {
	if vm.hostClock != nil {
		vm.hostClock.Resume()
	}
	return nil
}
