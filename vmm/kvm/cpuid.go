package kvm

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// CPUID leaves that are changed for the guest.
const (
	leafFeatures     = 0x1
	leafCache        = 0x4
	leafMonitor      = 0x5
	leafExtFeatures  = 0x7
	leafPMU          = 0xa
	leafTopology     = 0xb
	leafXSAVE        = 0xd
	leafSGX          = 0x12
	leafPT           = 0x14
	leafTSC          = 0x15
	leafLBR          = 0x1c
	leafTile         = 0x1d
	leafTMUL         = 0x1e
	leafTopologyV2   = 0x1f
	leafPMUExt       = 0x23
	leafHypervisor   = 0x4000_0000
	leafKVMFeatures  = 0x4000_0001
	leafTiming       = 0x4000_0010
	leafExtended     = 0x8000_0000
	leafExtFeatures1 = 0x8000_0001
	leafAddressSize  = 0x8000_0008
	leafSVM          = 0x8000_000a
	leafIBS          = 0x8000_001b
	leafLWP          = 0x8000_001c
	leafAMDCache     = 0x8000_001d
	leafAMDTopology  = 0x8000_001e
	leafSEV          = 0x8000_001f
	leafPMUv2        = 0x8000_0022
	leafTopologyAMD  = 0x8000_0026
)

// hidden are the leaves that a guest does not get at all: what KVM has no
// answer for in a plain VM, or what New switched off. A missing leaf reads as
// zeroes.
var hidden = []uint32{
	leafMonitor, leafPMU, leafSGX, leafPT, leafLBR, leafPMUExt, leafSVM, leafIBS, leafLWP, leafSEV, leafPMUv2,
	leafTopology, leafTopologyV2, leafTopologyAMD, // made anew
}

// masks are the feature bits that go with the hidden leaves, to be cleared.
var masks = []struct {
	function, index    uint32
	eax, ebx, ecx, edx uint32
}{
	// DTES64, MONITOR, DS-CPL, VMX, SMX, EST, TM2, xTPR, PDCM, DCA, OSXSAVE (KVM keeps that up to date).
	{function: leafFeatures, ecx: 1<<2 | 1<<3 | 1<<4 | 1<<5 | 1<<6 | 1<<7 | 1<<8 | 1<<14 | 1<<15 | 1<<18 | 1<<27,
		edx: 1<<21 | 1<<22 | 1<<29 | 1<<31}, // DS, ACPI, TM, PBE
	// SGX, PT; OSPKE, SGX_LC; ARCH_LBR.
	{function: leafExtFeatures, ebx: 1<<2 | 1<<25, ecx: 1<<4 | 1<<30, edx: 1 << 19},
	// SVM, IBS, SKINIT, LWP, PERFCTR_CORE, PERFCTR_NB, PERFTSC, PERFCTR_LLC, MWAITX.
	{function: leafExtFeatures1, ecx: 1<<2 | 1<<10 | 1<<12 | 1<<15 | 1<<23 | 1<<24 | 1<<27 | 1<<28 | 1<<29},
}

// amxFeatures are AMX-BF16, AMX-TILE and AMX-INT8 in CPUID.7.0:EDX, and
// xfeatureTile is their state in XCR0. KVM reports the features whether or not
// the process asked for the state, which costs 8 KiB a CPU; it did not.
const (
	amxFeatures  = 1<<22 | 1<<24 | 1<<25
	xfeatureTile = 1<<17 | 1<<18
)

// pvFeatures are the paravirtual features of CPUID.40000001:EAX that a guest
// may use when KVM has them (x86/cpuid.rst): clocksource, NOP I/O delay,
// clocksource2, async page faults, steal time, PV EOI, PV unhalt, TLB flush,
// async PF at VM exit, send IPI, poll control, sched yield, async PF by interrupt, stable
// clock. Not: memory encryption and migration, which need a userspace for them.
const pvFeatures = 1<<0 | 1<<1 | 1<<3 | 1<<4 | 1<<5 | 1<<6 | 1<<7 | 1<<9 | 1<<10 | 1<<11 | 1<<12 | 1<<13 | 1<<14 | 1<<24

// pvAsyncPF are asynchronous page faults: a guest in user mode that touches a page
// which the host has to fetch is told so, runs something else, and tries again
// when the page is there. KVM promises that of every mapping that is valid, also
// behind the end of a file that has shrunk, where no page will ever come: the
// guest would try for ever, and we would not hear of it. So a machine with
// windows over files does without.
const pvAsyncPF = 1<<4 | 1<<10 | 1<<14

// pvEOI lets a guest end an interrupt without an exit; see hostEmulated.
const pvEOI = 1 << 6

// apicBusKHz is the frequency that KVM's APIC timers count at before division.
const apicBusKHz = 1_000_000

// supportedCPUID returns what the host's KVM can offer, without what we do not.
// windows says that the guest's memory has windows over files.
func supportedCPUID(dev int, tscDeadline, windows bool) ([]kvmCPUIDEntry2, error) {
	raw := &kvmCPUID2{nent: maxCPUIDEntries}
	if _, err := ioctlPtr(dev, KVM_GET_SUPPORTED_CPUID, raw); err != nil {
		return nil, fmt.Errorf("ask KVM for its CPU features (KVM_GET_SUPPORTED_CPUID): %w", err)
	}
	list := filterCPUID(raw.entries[:min(raw.nent, maxCPUIDEntries)], tscDeadline)
	cpuidList(list).dropPV(windows, hostEmulated())
	return list, nil
}

// filterCPUID copies the entries without what a guest does not get.
func filterCPUID(all []kvmCPUIDEntry2, tscDeadline bool) []kvmCPUIDEntry2 {
	list := cpuidList(make([]kvmCPUIDEntry2, 0, len(all)+8))
	for _, e := range all {
		if !slices.Contains(hidden, e.function) {
			list = append(list, e)
		}
	}
	for _, m := range masks {
		if e := list.find(m.function, m.index); e != nil {
			e.eax, e.ebx, e.ecx, e.edx = e.eax&^m.eax, e.ebx&^m.ebx, e.ecx&^m.ecx, e.edx&^m.edx
		}
	}
	if e := list.find(leafFeatures, 0); e != nil {
		e.ecx |= 1<<21 | 1<<31 // x2APIC, hypervisor
		if tscDeadline {
			e.ecx |= 1 << 24
		}
	}
	if e := list.find(leafKVMFeatures, 0); e != nil {
		e.eax &= pvFeatures
		e.edx = 0 // KVM_HINTS_REALTIME is for CPUs that own a host CPU
	}
	list.dropAMX()
	return list
}

// dropPV takes the paravirtual features away that do not go with windows over
// files, or with a host that is emulated.
func (l cpuidList) dropPV(windows, emulated bool) {
	e := l.find(leafKVMFeatures, 0)
	if e == nil {
		return
	}
	if windows {
		e.eax &^= pvAsyncPF
	}
	if emulated {
		e.eax &^= pvEOI
	}
}

// cpuidList is a list of CPUID leaves.
type cpuidList []kvmCPUIDEntry2

// find returns the entry of a leaf, or nil.
func (l cpuidList) find(function, index uint32) *kvmCPUIDEntry2 {
	for i := range l {
		if l[i].function == function && (l[i].flags&KVM_CPUID_FLAG_SIGNIFCANT_INDEX == 0 || l[i].index == index) {
			return &l[i]
		}
	}
	return nil
}

// dropAMX takes AMX away unless its state is there too.
func (l *cpuidList) dropAMX() {
	if e := l.find(leafXSAVE, 0); e != nil && e.eax&xfeatureTile == xfeatureTile {
		return
	}
	if e := l.find(leafExtFeatures, 0); e != nil {
		e.edx &^= amxFeatures
	}
	if e := l.find(leafExtFeatures, 1); e != nil {
		e.eax &^= 1 << 21 // AMX-FP16
		e.edx &^= 1 << 8  // AMX-COMPLEX
	}
	*l = slices.DeleteFunc(*l, func(e kvmCPUIDEntry2) bool { return e.function == leafTile || e.function == leafTMUL })
}

// vendor is the CPU's vendor as CPUID.0 spells it.
func (l cpuidList) vendor() string {
	e := l.find(0, 0)
	if e == nil {
		return ""
	}
	var b []byte
	for _, r := range []uint32{e.ebx, e.edx, e.ecx} {
		b = binary.LittleEndian.AppendUint32(b, r)
	}
	return string(b)
}

func (l cpuidList) amd() bool {
	v := l.vendor()
	return v == "AuthenticAMD" || v == "HygonGenuine"
}

// topology is where one CPU is in the machine.
type topology struct {
	id          uint32 // APIC ID
	node        uint32 // package
	threads     uint32 // of a core
	cpus        uint32 // of a package
	core, shift uint32 // widths of the APIC ID's fields below the core, the package
}

// newTopology is for CPU i.
func newTopology(t vcpu.Topology, i int) topology {
	return topology{
		id: t.APICID(i), node: uint32(i / t.PerPackage()), threads: uint32(t.ThreadsPerCore()), cpus: uint32(t.PerPackage()),
		core: uint32(t.CoreShift()), shift: uint32(t.PackageShift()),
	}
}

// forCPU returns the list for one CPU, with its topology and its clock.
func (l cpuidList) forCPU(t topology, tscKHz uint32) cpuidList {
	n := append(make(cpuidList, 0, len(l)+8), l...)
	n.setFeatures(t)
	n.setCaches(t)
	n.addTopology(t)
	n.setAMD(t)
	n.setTiming(tscKHz)
	return n
}

// setFeatures fills leaf 1: initial APIC ID, addressable IDs of the package, HTT.
func (l cpuidList) setFeatures(t topology) {
	e := l.find(leafFeatures, 0)
	if e == nil {
		return
	}
	e.ebx = e.ebx&0xffff | 1<<t.shift<<16 | t.id<<24
	e.edx &^= 1 << 28
	if t.cpus > 1 {
		e.edx |= 1 << 28
	}
}

// setCaches says which CPUs share a cache, in leaf 4 and its AMD twin: the
// third level is the package's, the others are a core's and its threads'.
func (l cpuidList) setCaches(t topology) {
	for i := range l {
		e := &l[i]
		if e.function != leafCache && e.function != leafAMDCache || e.eax&0x1f == 0 {
			continue
		}
		sharing := uint32(1<<t.core - 1)
		if level := e.eax >> 5 & 7; level >= 3 {
			sharing = 1<<t.shift - 1
		}
		e.eax = e.eax&0x3fff | sharing<<14
		if e.function == leafCache {
			e.eax |= (1<<(t.shift-t.core) - 1) << 26
		}
	}
}

// addTopology adds leaves 0xb and, where the CPU has it, 0x1f: a level of threads,
// a level of cores, and the end.
func (l *cpuidList) addTopology(t topology) {
	const smt, core = 1, 2
	zero := l.find(0, 0)
	if zero == nil {
		return
	}
	zero.eax = max(zero.eax, leafTopology)
	for _, leaf := range []uint32{leafTopology, leafTopologyV2} {
		if leaf > zero.eax {
			continue
		}
		level := kvmCPUIDEntry2{function: leaf, flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX, edx: t.id}
		threads, cores, end := level, level, level
		threads.eax, threads.ebx, threads.ecx = t.core, t.threads, smt<<8
		cores.index, cores.eax, cores.ebx, cores.ecx = 1, t.shift, t.cpus, core<<8|1
		end.index, end.ecx = 2, 2
		*l = append(*l, threads, cores, end)
		zero = l.find(0, 0)
	}
}

// setAMD fills the leaves that only AMD CPUs use: CmpLegacy, the number of
// cores, the extended APIC ID.
func (l *cpuidList) setAMD(t topology) {
	if !l.amd() {
		return
	}
	if e := l.find(leafExtFeatures1, 0); e != nil {
		e.ecx &^= 1 << 1
		if t.cpus > 1 {
			e.ecx |= 1 << 1
		}
	}
	if e := l.find(leafAddressSize, 0); e != nil {
		e.ecx = e.ecx&^0xf0ff | t.shift<<12 | (t.cpus - 1)
	}
	if e := l.find(leafAMDTopology, 0); e != nil {
		coreID := t.id & (1<<t.shift - 1) >> t.core
		e.eax, e.ebx, e.ecx, e.edx = t.id, (t.threads-1)<<8|coreID, t.node, 0
	}
}

// setTiming tells the frequencies of TSC and APIC timer: leaf 40000010, which
// several hypervisors share, and on Intel CPUs leaf 15, whose "crystal" is what
// the APIC timer counts.
func (l *cpuidList) setTiming(tscKHz uint32) {
	if tscKHz == 0 {
		return
	}
	if e := l.find(leafHypervisor, 0); e != nil {
		e.eax = max(e.eax, leafTiming)
		*l = append(*l, kvmCPUIDEntry2{function: leafTiming, eax: tscKHz, ebx: apicBusKHz})
	}
	if zero := l.find(0, 0); zero == nil || zero.eax < leafTSC || l.vendor() != "GenuineIntel" {
		return
	}
	*l = slices.DeleteFunc(*l, func(e kvmCPUIDEntry2) bool { return e.function == leafTSC })
	*l = append(*l, kvmCPUIDEntry2{function: leafTSC, eax: apicBusKHz, ebx: tscKHz, ecx: apicBusKHz * 1000})
}

// setCPUID gives the CPU its CPUID.
func (c *VCPU) setCPUID() error {
	khz, err := ioctl(c.fd, KVM_GET_TSC_KHZ, 0)
	if err != nil {
		khz = 0
	}
	list := cpuidList(c.vm.cpuid).forCPU(newTopology(c.vm.topology, c.id), uint32(khz))
	var raw kvmCPUID2
	raw.nent = uint32(copy(raw.entries[:], list))
	if _, err := ioctlPtr(c.fd, KVM_SET_CPUID2, &raw); err != nil {
		return fmt.Errorf("set the features of CPU %d (KVM_SET_CPUID2): %w", c.id, err)
	}
	return nil
}
