package soft

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// TestPaging32: the paging modes of 32-bit code, with small and large pages:
// rights, reserved bits, error codes, accessed and dirty bits (SDM vol. 3A §4.3,
// §4.4, §4.6 to §4.8).
func TestPaging32(t *testing.T) {
	const (
		la    = 0x00c01234 // in 32-bit paging's PDE 3, PAE's PDE 6
		frame = 0x40000
	)
	type table struct{ entry, size uint64 } // where the leaf is
	modes := []struct {
		name  string
		cr4   uint64
		large bool
	}{{"32-bit", 0, false}, {"4 MiB", cr4PSE, true}, {"PAE", cr4PAE, false}, {"PAE, 2 MiB", cr4PAE, true}}
	for _, tt := range []struct {
		name       string
		set, clear uint64
		pae        bool // only there
		cr0        uint64
		user       bool
		code       string
		err        int
	}{
		{"read", 0, 0, false, 0, false, "8b03", -1},
		{"write", 0, 0, false, 0, false, "8903", -1},
		{"add", 0, 0, false, 0, true, "830301", -1},
		{"read not present", 0, pteP, false, 0, false, "8b03", 0},
		{"user write not present", 0, pteP, false, 0, true, "8903", 6},
		{"user read supervisor page", 0, pteU, false, 0, true, "8b03", 5},
		{"user write read-only", 0, pteW, false, 0, true, "8903", 7},
		{"write read-only", 0, pteW, false, 0, false, "8903", -1},
		{"write read-only, WP", 0, pteW, false, cr0WP, false, "8903", 3},
		{"NX fetch", pteNX, 0, true, 0, false, "ffe3", 0x11},
		{"NX user fetch", pteNX, 0, true, 0, true, "ffe3", 0x15},
		{"NX read", pteNX, 0, true, 0, true, "8b03", -1},
		{"reserved", 1 << 51, 0, true, 0, false, "8b03", 9},
		{"reserved, user write", 1 << 51, 0, true, 0, true, "8903", 0xf},
	} {
		for _, m := range modes {
			if tt.pae && m.cr4&cr4PAE == 0 {
				continue
			}
			t.Run(fmt.Sprintf("%s, %s", m.name, tt.name), func(t *testing.T) {
				c, ram := fuzzMachine(t)
				fuzzMode(c, ram, 1, tt.user)
				c.s.CR0 |= cr0PG | tt.cr0
				c.s.CR4, c.s.CR3 = m.cr4, 0x1000
				c.s.EFER = eferNXE
				rights := uint64(pteP | pteW | pteU)
				var leaf table
				put := func(at table, v uint64) {
					if at.size == 4 {
						binary.LittleEndian.PutUint32(ram[at.entry:], uint32(v))
					} else {
						binary.LittleEndian.PutUint64(ram[at.entry:], v)
					}
				}
				page, physical := uint64(frame)|rights, uint64(frame+la&0xfff)
				if m.cr4&cr4PAE != 0 { // the first 2 MiB, with the code, one to one
					put(table{0x1000, 8}, 0x2000|pteP)
					put(table{0x2000, 8}, rights|ptePS)
					leaf = table{0x3000 + la>>12&511*8, 8}
					put(table{0x2000 + la>>21*8, 8}, 0x3000|rights)
					if m.large {
						leaf, page, physical = table{0x2000 + la>>21*8, 8}, rights|ptePS, la&0x1fffff
					}
				} else {
					put(table{0x1000, 4}, 0x2000|rights)
					for i := range uint64(256) {
						put(table{0x2000 + i*4, 4}, i<<12|rights)
					}
					leaf = table{0x3000 + la>>12&1023*4, 4}
					put(table{0x1000 + la>>22*4, 4}, 0x3000|rights)
					if m.large {
						leaf, page, physical = table{0x1000 + la>>22*4, 4}, rights|ptePS, la&0x3fffff
					}
				}
				if physical >= uint64(len(ram)) {
					t.Fatalf("the access is to %#x", physical)
				}
				put(leaf, page&^tt.clear|tt.set)
				code := make([]byte, len(tt.code)/2)
				fmt.Sscanf(tt.code, "%x", &code)
				copy(ram[0x8000:], code)
				c.s.R[vcpu.RBX], c.s.R[vcpu.RAX] = la, 0x12345678
				c.setMode()
				c.flushTLB()
				st := c.single()
				if st != stFault && tt.code == "ffe3" {
					st = c.single()
				}
				if (st == stFault) != (tt.err >= 0) || st == stFault && (c.exc.vec != vecPF || c.exc.err != uint32(tt.err) || c.exc.cr2 != la) {
					t.Fatalf("status %d %+v, want error code %#x", st, c.exc, tt.err)
				}
				e := binary.LittleEndian.Uint32(ram[leaf.entry:])
				want := uint32(0)
				if tt.err < 0 {
					want = pteA
					if tt.code != "8b03" {
						want |= pteD
					}
				}
				if e&(pteA|pteD) != want {
					t.Errorf("entry %#x, want %#x of A and D", e, want)
				}
				if got := binary.LittleEndian.Uint32(ram[physical:]); tt.err < 0 && tt.code == "8903" && got != 0x12345678 {
					t.Errorf("%#x was stored", got)
				}
			})
		}
	}
}
