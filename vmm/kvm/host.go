package kvm

import "encoding/binary"

// hostCPUID executes CPUID on the host with subleaf 0.
func hostCPUID(leaf uint32) (eax, ebx, ecx, edx uint32)

// hostEmulated reports whether this host is itself a guest of QEMU's
// instruction emulator (TCG), by the hypervisor leaf's signature.
//
// TCG's SVM keeps the number of an interrupt that VMRUN has injected until the
// guest's next exit, and delivers it a second time, with interrupts disabled, if
// its own loop is left before that (seen with QEMU 7.2 and 10.0). With PV EOI an
// interrupt handler has no such exit, and a kernel soon deadlocks in a nested
// timer interrupt; without it the handler's EOI comes within a few instructions.
func hostEmulated() bool {
	if _, _, ecx, _ := hostCPUID(1); ecx>>31 == 0 {
		return false
	}
	_, ebx, ecx, edx := hostCPUID(0x40000000)
	return signature(ebx, ecx, edx) == "TCGTCGTCGTCG"
}

// signature joins a hypervisor leaf's three registers.
func signature(ebx, ecx, edx uint32) string {
	b := binary.LittleEndian.AppendUint32(nil, ebx)
	b = binary.LittleEndian.AppendUint32(b, ecx)
	return string(binary.LittleEndian.AppendUint32(b, edx))
}
