package vcpu

import (
	"slices"
	"testing"
)

// TestTopology: APIC IDs have a field for threads and one for cores, as wide as
// their numbers need (Intel SDM vol. 3A §9.9.1).
func TestTopology(t *testing.T) {
	for _, c := range []struct {
		t         Topology
		core, pkg int
		ids       []uint32
	}{
		{Topology{CPUs: 1}, 0, 0, []uint32{0}},
		{Topology{CPUs: 4}, 0, 2, []uint32{0, 1, 2, 3}},
		{Topology{CPUs: 4, Sockets: 2}, 0, 1, []uint32{0, 1, 2, 3}},
		{Topology{CPUs: 6, Sockets: 2}, 0, 2, []uint32{0, 1, 2, 4, 5, 6}},
		{Topology{CPUs: 6, Threads: 2}, 1, 3, []uint32{0, 1, 2, 3, 4, 5}},
		{Topology{CPUs: 12, Sockets: 2, Threads: 2}, 1, 3, []uint32{0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13}},
	} {
		if !c.t.Valid() || c.t.CoreShift() != c.core || c.t.PackageShift() != c.pkg || !slices.Equal(c.t.APICIDs(), c.ids) {
			t.Errorf("%+v: %d %d %v, want %d %d %v", c.t, c.t.CoreShift(), c.t.PackageShift(), c.t.APICIDs(), c.core, c.pkg, c.ids)
		}
	}
	for _, bad := range []Topology{{}, {CPUs: 3, Sockets: 2}, {CPUs: 2, Threads: 4}, {CPUs: 4, Sockets: -1}} {
		if bad.Valid() {
			t.Errorf("%+v is valid", bad)
		}
	}
	// 64 CPUs must stay below the xAPIC's broadcast ID however they are divided.
	for sockets := 1; sockets <= 64; sockets++ {
		for threads := 1; threads <= 64; threads++ {
			for cpus := sockets * threads; cpus <= 64; cpus += sockets * threads {
				tp := Topology{cpus, sockets, threads}
				if ids := tp.APICIDs(); ids[cpus-1] >= 255 {
					t.Errorf("%+v: APIC ID %d", tp, ids[cpus-1])
				}
			}
		}
	}
}
