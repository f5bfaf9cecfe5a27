package soft

import (
	"encoding/binary"

	"golang.org/x/sys/cpu"

	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// features are what the guest is offered beyond what is the same on every host.
type features struct {
	cr4, xcr0              uint64
	sse4                   bool // SSSE3, SSE4.1 and SSE4.2: without them it is no x86-64-v2
	v3                     bool // AVX, AVX2, BMI1, BMI2, F16C, FMA, LZCNT, XSAVE
	bmi1, lzcnt, adx       bool
	aes, pclmul, sha       bool
	invpcid, rdpid, rdrand bool
	physBits               uint32
}

// tscKHz is the frequency of the time stamp counter and of the local APIC's
// timer: 1 GHz, so that a tick is a nanosecond of the host's monotonic clock.
const tscKHz = 1_000_000

// newFeatures is what the guest is offered: x86-64-v3 unless v2 says not to, and
// instructions for ciphers and hashes, as far as the host's CPU has them.
func newFeatures(v2 bool) features {
	f := features{
		cr4:  cr4Basic | cr4UMIP | cr4FSGSBASE | cr4PCIDE | cr4SMEP | cr4SMAP,
		xcr0: 1, invpcid: true, rdpid: true, rdrand: true, physBits: physBits,
		sse4: cpu.X86.HasSSSE3 && cpu.X86.HasSSE41 && cpu.X86.HasSSE42,
		aes:  cpu.X86.HasAES, pclmul: cpu.X86.HasPCLMULQDQ, sha: hostHasSHA(),
	}
	if !v2 && f.sse4 && HostHasV3() {
		f.v3, f.bmi1, f.lzcnt, f.adx = true, true, true, cpu.X86.HasADX
		f.cr4 |= cr4OSXSAVE
		f.xcr0 = xcr0X87 | xcr0SSE | xcr0AVX
	}
	return f
}

// lacks reports whether in belongs to an extension that the guest does not have.
func (f *features) lacks(in *decode.Inst) bool {
	switch {
	case in.VEX && !f.v3:
		return true
	case in.Map == 2 && in.Opcode >= 0xc8 && in.Opcode <= 0xcd, in.Map == 3 && in.Opcode == 0xcc:
		return !f.sha
	case in.Map == 2 && in.Opcode >= 0xdb && in.Opcode <= 0xdf, in.Map == 3 && in.Opcode == 0xdf:
		return !f.aes
	case in.Map == 3 && in.Opcode == 0x44:
		return !f.pclmul
	case in.Op == decode.ADCX, in.Op == decode.ADOX:
		return !f.adx
	case in.Map == 2 || in.Map == 3:
		return !f.sse4 && in.Opcode < 0x80
	}
	return false
}

// CPUID bits (SDM vol. 2A, CPUID; AMD APM vol. 3 appendix E).
const (
	leaf1ECX = 1<<0 | // SSE3
		1<<13 | // CMPXCHG16B
		1<<17 | // PCID
		1<<21 | // x2APIC
		1<<22 | // MOVBE
		1<<23 | // POPCNT
		1<<24 | // TSC deadline
		1<<30 | // RDRAND
		1<<31 // hypervisor
	leaf1EDX = 1<<0 | 1<<2 | 1<<3 | 1<<4 | 1<<5 | 1<<6 | 1<<7 | 1<<8 | 1<<9 | // FPU DE PSE TSC MSR PAE MCE CX8 APIC
		1<<11 | 1<<12 | 1<<13 | 1<<14 | 1<<15 | 1<<16 | 1<<17 | 1<<19 | // SEP MTRR PGE MCA CMOV PAT PSE36 CLFSH
		1<<23 | 1<<24 | 1<<25 | 1<<26 // MMX FXSR SSE SSE2
	leaf7EBX = 1<<0 | 1<<7 | 1<<9 | 1<<10 | 1<<18 | 1<<20 | 1<<23 | 1<<24 // FSGSBASE SMEP ERMS INVPCID RDSEED SMAP CLFLUSHOPT CLWB
	leaf7ECX = 1<<2 | 1<<22                                               // UMIP RDPID
	leaf7EDX = 1<<4 | 1<<26 | 1<<29                                       // FSRM, SPEC_CTRL, ARCH_CAPABILITIES
	ext1ECX  = 1<<0 | 1<<8                                                // LAHF in 64-bit mode, PREFETCHW
	ext1EDX  = 1<<11 | 1<<20 | 1<<26 | 1<<27 | 1<<29                      // SYSCALL NX 1GB-pages RDTSCP LM

	// kvmFeatures are the CPUID 0x40000001 bits of Linux's kvm_para.h: kvm-clock
	// by old and new MSRs, no I/O delay, stable clock.
	kvmFeatures = 1<<0 | 1<<1 | 1<<3 | 1<<24
)

const (
	// cpuFamilyModel is family 6 and a model that no CPU has (EAX of leaf 1, Intel SDM
	// vol. 2A, CPUID, figure 3-6): programs that choose code by a known model, as GCC's
	// target_clones("arch=...") does, run instructions whose CPUID bits nobody has checked.
	cpuFamilyModel = 0xf0600
	brandString    = "gvmspawn software CPU"
	kvmLeaf        = 0x40000000
)

func word(s string, i int) uint32 {
	var b [4]byte
	if i < len(s) {
		copy(b[:], s[i:])
	}
	return binary.LittleEndian.Uint32(b[:])
}

// bit is bit n if on, else 0.
func bit(n uint8, on bool) uint32 { return uint32(boolBit(on)) << n }

// cpuid returns EAX, EBX, ECX, EDX of a leaf.
func (c *CPU) cpuid(leaf, sub uint32) [4]uint32 {
	t := &c.vm.topology
	switch leaf {
	case 0:
		const v = "GenuineIntel"
		return [4]uint32{0x16, word(v, 0), word(v, 8), word(v, 4)}
	case 1:
		ecx, edx := uint32(leaf1ECX), uint32(leaf1EDX)
		if c.vm.features.sse4 {
			ecx |= 1<<9 | 1<<19 | 1<<20 // SSSE3 SSE4.1 SSE4.2
		}
		if c.vm.features.v3 {
			ecx |= 1<<12 | 1<<26 | 1<<28 | 1<<29 // FMA XSAVE AVX F16C
		}
		ecx |= bit(1, c.vm.features.pclmul) | bit(25, c.vm.features.aes)
		if c.s.CR4&cr4OSXSAVE != 0 {
			ecx |= 1 << 27
		}
		if t.PerPackage() > 1 {
			edx |= 1 << 28 // HTT
		}
		return [4]uint32{cpuFamilyModel, c.apic.ID()<<24 | 1<<t.PackageShift()<<16 | 8<<8, ecx, edx}
	case 4:
		return cacheLeaf(t, sub)
	case 6:
		return [4]uint32{1 << 2} // APIC timer always running
	case 7:
		if sub == 0 {
			ebx := uint32(leaf7EBX)
			if c.vm.features.v3 {
				ebx |= 1<<3 | 1<<5 | 1<<8 // BMI1 AVX2 BMI2
			}
			ebx |= bit(19, c.vm.features.adx) | bit(29, c.vm.features.sha)
			return [4]uint32{0, ebx, leaf7ECX, leaf7EDX}
		}
	case 0xb:
		return c.topologyLeaf(sub)
	case 0xd:
		return c.xsaveLeaf(sub)
	case 0x15:
		return [4]uint32{1, 1, tscKHz * 1000}
	case 0x16:
		return [4]uint32{tscKHz / 1000, tscKHz / 1000, 100}
	case kvmLeaf:
		const v = "KVMKVMKVM"
		return [4]uint32{kvmLeaf + 0x10, word(v, 0), word(v, 4), word(v, 8)}
	case kvmLeaf + 1:
		return [4]uint32{kvmFeatures}
	case kvmLeaf + 0x10:
		return [4]uint32{tscKHz, tscKHz}
	case 0x80000000:
		return [4]uint32{0x80000008}
	case 0x80000001:
		ecx := uint32(ext1ECX)
		if c.vm.features.lzcnt {
			ecx |= 1 << 5
		}
		return [4]uint32{0, 0, ecx, ext1EDX}
	case 0x80000002, 0x80000003, 0x80000004:
		at := int(leaf-0x80000002) * 16
		return [4]uint32{word(brandString, at), word(brandString, at+4), word(brandString, at+8), word(brandString, at+12)}
	case 0x80000006:
		return [4]uint32{0, 0, 0x800<<16 | 6<<12 | 64}
	case 0x80000007:
		return [4]uint32{0, 0, 0, 1 << 8} // invariant TSC
	case 0x80000008:
		return [4]uint32{48<<8 | c.vm.features.physBits}
	}
	return [4]uint32{}
}

// xsaveLeaf is CPUID 0xd: the XSAVE area (SDM vol. 1 §13.2).
func (c *CPU) xsaveLeaf(sub uint32) [4]uint32 {
	if !c.vm.features.v3 {
		return [4]uint32{}
	}
	switch sub {
	case 0:
		size := uint32(xsaveYMM)
		if c.s.XCR0&xcr0AVX != 0 {
			size = xsaveSize
		}
		return [4]uint32{uint32(c.vm.features.xcr0), size, xsaveSize, 0}
	case 1:
		return [4]uint32{1} // XSAVEOPT
	case 2:
		return [4]uint32{256, xsaveYMM, 0, 0}
	}
	return [4]uint32{}
}

// cacheLeaf describes 32 KiB L1 caches and a 2 MiB L2, private to a core (SDM
// vol. 2A, CPUID leaf 4: EAX bits 14 up are the IDs that share it, bits 26 up
// those of cores in the package, less 1 each).
func cacheLeaf(t *vcpu.Topology, sub uint32) [4]uint32 {
	const ways, line = 7, 63
	sharing := uint32(1<<t.CoreShift()-1)<<14 | uint32(1<<(t.PackageShift()-t.CoreShift())-1)<<26
	switch sub {
	case 0, 1: // L1 data, instructions
		return [4]uint32{sub + 1 | 1<<5 | 1<<8 | sharing, ways<<22 | line, 63, 0}
	case 2:
		return [4]uint32{3 | 2<<5 | 1<<8 | sharing, ways<<22 | line, 4095, 0}
	}
	return [4]uint32{}
}

// topologyLeaf: the threads of a core, the CPUs of a package (SDM vol. 3A §9.9.6).
func (c *CPU) topologyLeaf(sub uint32) [4]uint32 {
	t, id := &c.vm.topology, c.apic.ID()
	switch sub {
	case 0:
		return [4]uint32{uint32(t.CoreShift()), uint32(t.ThreadsPerCore()), 1<<8 | sub, id}
	case 1:
		return [4]uint32{uint32(t.PackageShift()), uint32(t.PerPackage()), 2<<8 | sub, id}
	}
	return [4]uint32{0, 0, sub, id}
}

// resetRegisters is the state after RESET and INIT (SDM vol. 3A table 10-1).
func (c *CPU) resetRegisters() {
	s := c.s
	s.R = [32]uint64{}
	s.R[vcpu.RDX] = cpuFamilyModel
	s.RIP, s.Flags = 0xfff0, 2
	s.setArith(0)
	s.CR0, s.CR2, s.CR3, s.CR4, s.CR8, s.EFER, s.XCR0 = cr0ET|cr0CD|cr0NW, 0, 0, 0, 0, 0, 1
	data := vcpu.Segment{Limit: 0xffff, Attr: attrP | attrS | 3}
	for i := range 6 {
		s.Seg[i] = data
	}
	s.Seg[vcpu.CS] = vcpu.Segment{Selector: 0xf000, Base: 0xffff0000, Limit: 0xffff, Attr: attrP | attrS | 0xb}
	s.Seg[segLDTR] = vcpu.Segment{Limit: 0xffff, Attr: attrP | 2}
	s.Seg[segTR] = vcpu.Segment{Limit: 0xffff, Attr: attrP | 0xb}
	s.GDT, s.IDT = vcpu.Table{Limit: 0xffff}, vcpu.Table{Limit: 0xffff}
	s.DR = [8]uint64{6: 0xffff0ff0, 7: 0x400}
	s.CPL = 0
	s.MXCSR = 0x1f80
	c.resetFPU()
	c.halted, c.shadow, c.nmiBlocked = false, false, false
	c.dataBreaks = c.debug.watching()
	c.flushTLB()
	c.setMode()
}
