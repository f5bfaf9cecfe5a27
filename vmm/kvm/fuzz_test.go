package kvm

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// checkedIO fails the test for an access that vcpu.IO rules out.
type checkedIO struct {
	t *testing.T
	n int
}

func (c *checkedIO) check(size, most int) {
	if c.n++; size != 1 && size != 2 && size != 4 && size != 8 || size > most {
		c.t.Errorf("an access of %d bytes", size)
	}
}
func (c *checkedIO) PortIn(_ uint16, size int) uint32       { c.check(size, 4); return ^uint32(0) }
func (c *checkedIO) PortOut(_ uint16, size int, _ uint32)   { c.check(size, 4) }
func (c *checkedIO) MMIORead(_ uint64, size int) uint64     { c.check(size, 8); return ^uint64(0) }
func (c *checkedIO) MMIOWrite(_ uint64, size int, _ uint64) { c.check(size, 8) }

// FuzzExit feeds arbitrary contents of the kvm_run page to the exit handlers.
func FuzzExit(f *testing.F) {
	io := make([]byte, 16)
	io[1] = 2
	binary.LittleEndian.PutUint32(io[4:], 2048)
	binary.LittleEndian.PutUint64(io[8:], 4096)
	f.Add(uint32(KVM_EXIT_IO), io)
	binary.LittleEndian.PutUint64(io[8:], ^uint64(0)-100)
	f.Add(uint32(KVM_EXIT_IO), io)
	mmio := make([]byte, 24)
	mmio[16], mmio[20] = 7, 1
	f.Add(uint32(KVM_EXIT_MMIO), mmio)
	mmio[17], mmio[18] = 0xff, 0xff
	f.Add(uint32(KVM_EXIT_MMIO), mmio)
	f.Add(uint32(KVM_EXIT_INTERNAL_ERROR), []byte{1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0, 0, 0, 0, 0xff})
	f.Add(uint32(KVM_EXIT_INTERNAL_ERROR), []byte{2, 0, 0, 0, 0xff, 0xff, 0xff, 0xff})
	f.Add(uint32(KVM_EXIT_MEMORY_FAULT), []byte{})
	f.Fuzz(func(t *testing.T, reason uint32, union []byte) {
		check := &checkedIO{t: t}
		shared := make([]byte, 3*4096)
		c := &VCPU{vm: &VM{fd: -1}, fd: -1, shared: shared, run: runOf(shared), io: check}
		c.run.exitReason = reason
		copy(c.run.exit[:], union)
		switch reason {
		case KVM_EXIT_IO:
			c.port()
		case KVM_EXIT_MMIO:
			c.mmio()
		default:
			if e := c.otherExit(); e.Reason == vcpu.ExitInternal && e.Detail == "" {
				t.Error("an internal error without a word")
			}
		}
		if check.n > len(shared) {
			t.Errorf("%d accesses in one exit", check.n)
		}
	})
}

// FuzzGuest runs arbitrary code in arbitrary register states for a few
// milliseconds: whatever happens, a kick brings the CPU back.
func FuzzGuest(f *testing.F) {
	f.Add([]byte{0xeb, 0xfe}, uint64(0), false)
	f.Add([]byte{0xf3, 0x6e, 0xf3, 0x6d}, uint64(1), true)
	f.Add([]byte{0x0f, 0x01, 0xc1, 0x0f, 0x30, 0x0f, 0x32, 0xf4}, uint64(2), true)
	f.Fuzz(func(t *testing.T, code []byte, seed uint64, flat bool) {
		if len(code) > testRAM-codeAt {
			return
		}
		g := newGuest(t, 1, code...)
		g.VM.cpus[0].io = &checkedIO{t: t}
		c := g.start(t, func(r *vcpu.Registers) {
			if flat {
				flat32(r)
			}
			for i := range r.GPR {
				seed = seed*6364136223846793005 + 1442695040888963407
				r.GPR[i] = seed
			}
		})
		time.AfterFunc(5*time.Millisecond, c.Kick)
		onThread(t, func() {
			if _, err := c.Run(); err != nil {
				t.Error(err)
			}
		})
		var r vcpu.Registers
		if err := c.Registers(&r); err != nil {
			t.Error(err)
		}
		// Hostile register values may be refused, no more.
		r.CR0, r.CR4, r.EFER = seed, seed>>3, seed>>7
		_ = c.SetRegisters(&r)
		c.Kick()
		onThread(t, func() { _, _ = c.Run() })
	})
}
