package kvm

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/layout"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// hostCPU is a CPUID list as a host's KVM might report it, with everything in
// it that a guest must not get.
func hostCPU(vendor string) cpuidList {
	le := binary.LittleEndian
	v := []byte(vendor)
	ones := ^uint32(0)
	indexed := func(f, i, eax, ebx, ecx, edx uint32) kvmCPUIDEntry2 {
		return kvmCPUIDEntry2{function: f, index: i, flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX, eax: eax, ebx: ebx, ecx: ecx, edx: edx}
	}
	l := cpuidList{
		{function: 0, eax: 0x1f, ebx: le.Uint32(v), edx: le.Uint32(v[4:]), ecx: le.Uint32(v[8:])},
		{function: 1, ebx: 0x07_20_08_00, ecx: ones, edx: ones},
		indexed(4, 0, 7<<26|1<<14|1<<5|1, 0, 0, 0), indexed(4, 3, 7<<26|7<<14|3<<5|3, 0, 0, 0), indexed(4, 4, 0, 0, 0, 0),
		indexed(7, 0, 1, ones, ones, ones), indexed(7, 1, ones, 0, 0, ones),
		indexed(0xb, 0, 1, 2, 0x100, 9), indexed(0x1f, 0, 1, 2, 0x100, 9),
		indexed(0xd, 0, 7, 0, 0, 0), indexed(0x1d, 0, 1, 0, 0, 0), indexed(0x1e, 0, 1, 0, 0, 0),
		{function: 0x4000_0000, eax: 0x4000_0001}, {function: 0x4000_0001, eax: ones, edx: ones},
		{function: 0x8000_0001, ecx: ones}, {function: 0x8000_0008, eax: 0x3030, ecx: 0x4005},
		indexed(0x8000_001d, 3, 15<<14|3<<5|3, 0, 0, 0), {function: 0x8000_001e, eax: 5, ebx: 0x105, ecx: 0x203},
	}
	for _, f := range hidden {
		l = append(l, kvmCPUIDEntry2{function: f, eax: ones, ebx: ones, ecx: ones, edx: ones})
	}
	return l
}

// TestCPUIDFilter: what a guest does not get, and what it always gets.
func TestCPUIDFilter(t *testing.T) {
	l := cpuidList(filterCPUID(hostCPU("GenuineIntel"), true))
	for _, f := range []uint32{0xa, 0x12, 0x14, 0x1c, 0x1d, 0x1e, 0x23, 0x8000_000a, 0x8000_001f, 0x8000_0022} {
		if l.find(f, 0) != nil {
			t.Errorf("leaf %#x is there", f)
		}
	}
	one, seven := l.find(1, 0), l.find(7, 0)
	for name, bad := range map[string]bool{
		"VMX": one.ecx&(1<<5) != 0, "MONITOR": one.ecx&(1<<3) != 0, "PDCM": one.ecx&(1<<15) != 0,
		"SVM": l.find(leafExtFeatures1, 0).ecx&(1<<2) != 0, "SGX": seven.ebx&(1<<2) != 0, "PT": seven.ebx&(1<<25) != 0,
		"AMX-TILE": seven.edx&(1<<24) != 0, "realtime hint": l.find(leafKVMFeatures, 0).edx != 0,
		"migration control": l.find(leafKVMFeatures, 0).eax&(1<<17) != 0,
	} {
		if bad {
			t.Errorf("%s is there", name)
		}
	}
	for name, good := range map[string]bool{
		"x2APIC": one.ecx&(1<<21) != 0, "TSC deadline": one.ecx&(1<<24) != 0, "hypervisor": one.ecx&(1<<31) != 0,
		"CX16": one.ecx&(1<<13) != 0, "AVX512F": seven.ebx&(1<<16) != 0, "kvmclock": l.find(leafKVMFeatures, 0).eax&(1<<3) != 0,
	} {
		if !good {
			t.Errorf("%s is not there", name)
		}
	}
	// Leaf 0xd with tile state: the process asked for it, so AMX stays.
	host := hostCPU("GenuineIntel")
	host.find(leafXSAVE, 0).eax |= xfeatureTile
	if l := cpuidList(filterCPUID(host, true)); l.find(leafTile, 0) == nil || l.find(7, 0).edx&amxFeatures != amxFeatures {
		t.Error("AMX was dropped in spite of its state")
	}
}

// TestCPUIDTopology checks every leaf that tells how many CPUs there are.
func TestCPUIDTopology(t *testing.T) {
	for _, cpus := range []int{1, 2, 3, 4, 5, 8, 63, 64} {
		for _, vendor := range []string{"GenuineIntel", "AuthenticAMD"} {
			ids := map[uint32]bool{}
			for id := range cpus {
				l := cpuidList(filterCPUID(hostCPU(vendor), true)).forCPU(newTopology(vcpu.Topology{CPUs: cpus}, id), 2_000_000)
				checkTopology(t, fmt.Sprintf("%s, CPU %d of %d", vendor, id, cpus), l, uint32(id), uint32(cpus))
				ids[l.find(0xb, 0).edx] = true
			}
			if len(ids) != cpus {
				t.Errorf("%d CPUs have %d APIC IDs", cpus, len(ids))
			}
		}
	}
}

func checkTopology(t *testing.T, name string, l cpuidList, id, cpus uint32) {
	t.Helper()
	same := func(what string, got, want uint32) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %s is %d, want %d", name, what, got, want)
		}
	}
	slots := uint32(1) // IDs in the package
	for slots < cpus {
		slots *= 2
	}
	one := l.find(1, 0)
	same("initial APIC ID", one.ebx>>24, id)
	same("addressable IDs", one.ebx>>16&0xff, slots)
	same("HTT", one.edx>>28&1, min(cpus-1, 1))
	same("CPUs in a package by leaf 4", l.find(4, 0).eax>>26+1, slots)
	same("CPUs at the first cache", l.find(4, 0).eax>>14&0xfff+1, 1)
	same("CPUs at the third cache", l.find(4, 3).eax>>14&0xfff+1, slots)
	same("type of no cache", l.find(4, 4).eax, 0)
	for _, leaf := range []uint32{0xb, 0x1f} {
		for i, want := range [][3]uint32{{0, 1, 1 << 8}, {newTopology(vcpu.Topology{CPUs: int(cpus)}, 0).shift, cpus, 2<<8 | 1}, {0, 0, 2}} {
			e := l.find(leaf, uint32(i))
			same("level shift", e.eax, want[0])
			same("level CPUs", e.ebx, want[1])
			same("level type", e.ecx, want[2])
			same("x2APIC ID", e.edx, id)
		}
	}
	if l.amd() {
		same("AMD number of cores", l.find(leafAddressSize, 0).ecx&0xff+1, cpus)
		same("AMD ID size", 1<<(l.find(leafAddressSize, 0).ecx>>12&0xf), slots)
		same("AMD CmpLegacy", l.find(leafExtFeatures1, 0).ecx>>1&1, min(cpus-1, 1))
		same("AMD extended APIC ID", l.find(leafAMDTopology, 0).eax, id)
		same("AMD core ID and threads", l.find(leafAMDTopology, 0).ebx, id)
		same("AMD nodes", l.find(leafAMDTopology, 0).ecx, 0)
		same("AMD CPUs at the third cache", l.find(leafAMDCache, 3).eax>>14&0xfff+1, slots)
		return
	}
	same("address size leaf", l.find(leafAddressSize, 0).ecx, 0x4005)
	tsc := l.find(leafTSC, 0)
	same("TSC kHz by leaf 15", uint32(uint64(tsc.ecx/1000)*uint64(tsc.ebx)/uint64(tsc.eax)), 2_000_000)
	same("TSC kHz by leaf 40000010", l.find(leafTiming, 0).eax, 2_000_000)
	same("last hypervisor leaf", l.find(leafHypervisor, 0).eax, leafTiming)
}

// TestCPUIDThreads: two packages of three cores with two threads each.
func TestCPUIDThreads(t *testing.T) {
	tp := vcpu.Topology{CPUs: 12, Sockets: 2, Threads: 2}
	for _, vendor := range []string{"GenuineIntel", "AuthenticAMD"} {
		l := cpuidList(filterCPUID(hostCPU(vendor), true)).forCPU(newTopology(tp, 9), 2_000_000)
		const id = 8 + 3 // package 1, core 1, thread 1
		one, threads, cores := l.find(1, 0), l.find(0xb, 0), l.find(0xb, 1)
		got := []uint32{one.ebx >> 24, one.ebx >> 16 & 0xff, threads.eax, threads.ebx, threads.edx, cores.eax, cores.ebx, l.find(4, 0).eax >> 26, l.find(4, 0).eax >> 14 & 0xfff}
		if want := []uint32{id, 8, 1, 2, id, 3, 6, 3, 1}; !slices.Equal(got, want) {
			t.Errorf("%s: %d, want %d", vendor, got, want)
		}
		if e := l.find(leafAMDTopology, 0); l.amd() && (e.eax != id || e.ebx != 1<<8|1 || e.ecx != 1) {
			t.Errorf("AMD: %+v", e)
		}
	}
}

// TestCPUIDParavirtual: no asynchronous page faults over windows, no PV EOI in TCG.
func TestCPUIDParavirtual(t *testing.T) {
	const all = 0xffff_ffff
	for _, c := range []struct {
		windows, emulated bool
		lost              uint32
	}{{false, false, 0}, {true, false, 1<<4 | 1<<10 | 1<<14}, {false, true, 1 << 6}, {true, true, 1<<4 | 1<<6 | 1<<10 | 1<<14}} {
		l := cpuidList{{function: leafKVMFeatures, eax: all}}
		if l.dropPV(c.windows, c.emulated); l[0].eax != all&^c.lost {
			t.Errorf("%+v: %#x", c, l[0].eax)
		}
	}
	cpuidList{}.dropPV(true, true)
}

// TestCPUIDOldCPU: a host CPU without most of the leaves.
func TestCPUIDOldCPU(t *testing.T) {
	l := cpuidList(filterCPUID([]kvmCPUIDEntry2{{function: 0, eax: 2}, {function: 1}}, false)).forCPU(newTopology(vcpu.Topology{CPUs: 2}, 1), 0)
	if e := l.find(0, 0); e.eax != 0xb {
		t.Errorf("last leaf is %#x, want 0xb", e.eax)
	}
	if l.find(0xb, 0) == nil || l.find(0x1f, 0) != nil || l.find(1, 0).ecx&(1<<24) != 0 {
		t.Error("wrong leaves")
	}
	cpuidList(nil).forCPU(newTopology(vcpu.Topology{CPUs: 1}, 0), 1000) // must not panic
}

// TestSMP starts 63 CPUs by INIT and SIPI; each reports its APIC ID and the
// number of CPUs as CPUID tells it.
func TestSMP(t *testing.T) {
	const cpus, apAt = layout.MaxVCPUs, 0x8000
	g := newGuest(t, cpus, code(
		movMem(apicSVR, 0x1ff),
		movMem(apicICR, 0xc4500),          // INIT to all others
		movMem(apicICR, 0xc4600|apAt>>12), // SIPI
		[]byte{0xf4, 0xeb, 0xfd},          // hlt; jmp
	)...)
	ap := []byte{ // 16-bit
		0x66, 0xb8, 1, 0, 0, 0, 0x0f, 0xa2, // mov eax, 1; cpuid
		0x66, 0xc1, 0xeb, 24, 0x66, 0x89, 0xdd, // shr ebx, 24; mov ebp, ebx
		0x66, 0xb8, 0xb, 0, 0, 0, 0x66, 0xb9, 1, 0, 0, 0, 0x0f, 0xa2, // mov eax, 0xb; mov ecx, 1; cpuid
		0x66, 0xc1, 0xe5, 16, 0x66, 0x09, 0xd5, // shl ebp, 16; or ebp, edx
		0x66, 0xc1, 0xe3, 8, 0x66, 0x09, 0xdd, // shl ebx, 8; or ebp, ebx
		0x66, 0x89, 0xe8, 0x66, 0xe7, 0x71, // mov eax, ebp; out 0x71, eax
		0xf4, 0xeb, 0xfd, // hlt; jmp
	}
	if err := g.mem.WriteAt(ap, mem.GPA(apAt)); err != nil {
		t.Fatal(err)
	}
	seen := make(chan uint64, cpus)
	g.io.log = nil
	g.io.hook = func(a access) {
		if a.addr == 0x71 {
			seen <- a.value
		}
	}
	for i := 1; i < cpus; i++ {
		g.background(t, i)
	}
	g.start(t, flat32)
	g.background(t, 0)
	ids := map[uint64]bool{}
	for range cpus - 1 {
		v := <-seen
		id := v & 0xff
		if id == 0 || id >= cpus || ids[id] || v>>16 != id || v>>8&0xff != cpus {
			t.Errorf("a CPU reports %#x", v)
		}
		ids[id] = true
	}
}

// TestSIPIStorm: a CPU that resets and restarts all others without end neither
// hangs nor stops the machine (hostile guest, row 27).
func TestSIPIStorm(t *testing.T) {
	const cpus, apAt = 4, 0x8000
	init, sipi := movMem(apicICR, 0xc4500), movMem(apicICR, 0xc4600|apAt>>12)
	prog := code(movMem(apicSVR, 0x1ff), init, sipi, []byte{0xe6, 0x70, 0xeb}) // out 0x70, al; jmp to init
	prog = append(prog, byte(-(len(init) + len(sipi) + 4)))
	g := newGuest(t, cpus, prog...)
	if err := g.mem.WriteAt([]byte{0xeb, 0xfe}, mem.GPA(apAt)); err != nil {
		t.Fatal(err)
	}
	const rounds = 500
	n, enough := 0, make(chan struct{})
	g.io.log = nil
	g.io.hook = func(access) {
		if n++; n == rounds {
			close(enough)
		}
	}
	for i := 1; i < cpus; i++ {
		g.background(t, i)
	}
	g.start(t, flat32)
	g.background(t, 0)
	select {
	case <-enough:
	case <-time.After(30 * time.Second):
		t.Error("the storm stands still")
	}
}
