package vcpu

import "math/bits"

// Topology is how a machine's CPUs are arranged: Sockets packages of equally
// many cores with Threads threads each. The zero value is one package of cores
// with one thread each.
type Topology struct {
	CPUs    int // all threads together
	Sockets int // 0 means 1
	Threads int // of a core, 0 means 1
}

// Valid reports whether the CPUs can be divided up so.
func (t Topology) Valid() bool {
	return t.CPUs > 0 && t.Sockets >= 0 && t.Threads >= 0 && t.CPUs%(t.sockets()*t.ThreadsPerCore()) == 0
}

func (t Topology) sockets() int { return max(t.Sockets, 1) }

// ThreadsPerCore is at least 1.
func (t Topology) ThreadsPerCore() int { return max(t.Threads, 1) }

// PerPackage is the number of CPUs in a package.
func (t Topology) PerPackage() int { return t.CPUs / t.sockets() }

// CoresPerPackage is the number of cores in a package.
func (t Topology) CoresPerPackage() int { return t.PerPackage() / t.ThreadsPerCore() }

// CoreShift is the number of an APIC ID's low bits that tell a core's threads
// apart, PackageShift that of those that tell a package's CPUs apart (Intel SDM
// vol. 3A §9.9.1).
func (t Topology) CoreShift() int { return width(t.ThreadsPerCore()) }

// PackageShift: see CoreShift.
func (t Topology) PackageShift() int { return t.CoreShift() + width(t.CoresPerPackage()) }

// width is the number of bits that count to n-1.
func width(n int) int { return bits.Len(uint(n - 1)) }

// APICID is the local APIC ID of CPU i. IDs are not consecutive where a number
// of cores or threads is no power of two.
func (t Topology) APICID(i int) uint32 {
	pkg, in := i/t.PerPackage(), i%t.PerPackage()
	core, thread := in/t.ThreadsPerCore(), in%t.ThreadsPerCore()
	return uint32(pkg<<t.PackageShift() | core<<t.CoreShift() | thread)
}

// APICIDs is the local APIC ID of every CPU, in ascending order.
func (t Topology) APICIDs() []uint32 {
	ids := make([]uint32, t.CPUs)
	for i := range ids {
		ids[i] = t.APICID(i)
	}
	return ids
}
