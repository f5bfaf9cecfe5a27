package soft

import (
	"encoding/binary"
	"hash/fnv"

	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// Checkpoint is the state of a deterministic machine's CPU at the head of a block.
type Checkpoint struct {
	Count     uint64 // instructions executed before
	Registers vcpu.Registers
	// Vectors is a hash of x87, MMX, SSE and AVX state.
	Vectors uint64
	// Code is the next bytes that are to be executed, zero beyond their page.
	Code [16]byte
}

// checkpoints is what Checkpoints asked for.
type checkpoints struct {
	at, every uint64
	f         func(*Checkpoint) bool
	cp        Checkpoint
}

// Checkpoints calls f at the first head of a block behind from instructions, and
// then whenever every more were executed, until f returns false: then Run ends
// with ExitKick. It is for comparing tiers of the engine, and must be called
// before a deterministic machine runs.
func (vm *VM) Checkpoints(from, every uint64, f func(*Checkpoint) bool) {
	v := vm.virtual
	v.mu.Lock()
	defer v.mu.Unlock()
	v.check = &checkpoints{at: from, every: every, f: f}
	v.update()
}

// checkpoint calls the function if it is time.
func (v *virtualClock) checkpoint(c *CPU) {
	k := v.check
	if k == nil || c.s.Count < k.at {
		return
	}
	k.cp.Count = c.s.Count
	_ = c.Registers(&k.cp.Registers) // never fails
	k.cp.Vectors = c.vectorHash()
	k.cp.Code = [16]byte{}
	la := c.codeAddress(c.s.RIP)
	for i := range min(uint64(len(k.cp.Code)), 4096-la&0xfff) {
		exc := c.exc
		b, ok := c.peek(la + i)
		c.exc = exc
		if !ok {
			break
		}
		k.cp.Code[i] = byte(b)
	}
	k.at = c.s.Count + k.every
	if !k.f(&k.cp) {
		v.check = nil
		c.Kick()
	}
}

// vectorHash is a hash of the state that Registers leaves out.
func (c *CPU) vectorHash() uint64 {
	h := fnv.New64a()
	_, _ = h.Write(c.s.FX[:])
	_ = binary.Write(h, binary.LittleEndian, c.s.XMM)
	_ = binary.Write(h, binary.LittleEndian, c.s.MXCSR)
	return h.Sum64()
}

// Tamper changes a register of a machine that stands at a checkpoint, so that a
// test can see that the difference is found.
func (vm *VM) Tamper(register int, v uint64) { vm.cpus[0].s.R[register&15] = v }
