package vcpu

// SMM is an engine whose CPUs have System Management Mode (Intel SDM vol. 3C
// chapter 32; AMD APM vol. 2 chapter 10). The state that an SMI saves has the
// layout of AMD64, as in QEMU's CPUs, for which OVMF was written.
type SMM interface {
	// SMI delivers a system management interrupt to every CPU. It may be
	// called on a CPU's thread: that CPU takes it before its next instruction.
	SMI()
	// HideSMRAM makes memory of kind mem.SMRAM visible to CPUs in SMM only, or
	// to all of them, as at first.
	HideSMRAM(hide bool) error
}
