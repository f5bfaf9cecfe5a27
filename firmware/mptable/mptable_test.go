package mptable

import (
	"encoding/binary"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/layout"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// Every entry of the table is walked as a kernel does (MP 1.4 §4).
func TestTables(t *testing.T) {
	for _, step := range []uint32{1, 3} {
		for _, cpus := range []int{1, 2, layout.MaxVCPUs} {
			walk(t, cpus, step)
		}
	}
	if Write(mem.New(), nil) == nil || Write(mem.New(), make([]uint32, layout.MaxVCPUs+1)) == nil || Write(mem.New(), []uint32{0}) == nil || Write(mem.New(), []uint32{0, 254}) == nil {
		t.Error("no error for an impossible machine")
	}
}

// walk looks at the tables of CPUs whose APIC IDs are step apart.
func walk(t *testing.T, cpus int, step uint32) {
	t.Helper()
	var ids []uint32
	for i := range uint32(cpus) {
		ids = append(ids, i*step)
	}
	m := mem.New()
	t.Cleanup(func() { _ = m.Close() })
	if _, err := m.Add("RAM", 0, 2<<20, mem.RAM); err != nil {
		t.Fatal(err)
	}
	if err := Write(m, ids); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, layout.MPTableSize)
	if err := m.ReadAt(b, layout.MPTable); err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	if string(b[:4]) != "_MP_" || b[8] != 1 || b[9] != 4 || checksum(b[:16]) != 0 || layout.MPTable%16 != 0 {
		t.Errorf("pointer %x", b[:16])
	}
	c := b[le.Uint32(b[4:])-layout.MPTable:]
	n := int(le.Uint16(c[4:]))
	if string(c[:4]) != "PCMP" || checksum(c[:n]) != 0 || le.Uint32(c[36:]) != layout.LocalAPIC {
		t.Errorf("header %x", c[:headerSize])
	}
	count := map[byte]int{}
	at, last := headerSize, byte(0)
	for at < n {
		kind := c[at]
		if kind < last {
			t.Errorf("entry of type %d after %d", kind, last)
		}
		last = kind
		count[kind]++
		size := 8
		if kind == entryProcessor {
			size = 20
			if i := count[kind] - 1; c[at+1] != byte(ids[i]) || (c[at+3]&cpuBoot != 0) != (i == 0) || c[at+3]&cpuEnabled == 0 {
				t.Errorf("CPU %d: %x", i, c[at:at+size])
			}
		}
		if kind == entryIOAPIC && (c[at+1] != byte(ids[cpus-1]+1) || le.Uint32(c[at+4:]) != layout.IOAPIC) {
			t.Errorf("I/O APIC %x", c[at:at+size])
		}
		at += size
	}
	total := count[0] + count[1] + count[2] + count[3] + count[4]
	if at != n || count[entryProcessor] != cpus || count[entryBus] != 1 || count[entryIOAPIC] != 1 || count[entryIOInt] != layout.GSIPins-1 || count[entryLocalInt] != 2 ||
		int(le.Uint16(c[34:])) != total {
		t.Errorf("%d CPUs: %d of %d bytes, entries %v of %d", cpus, at, n, count, le.Uint16(c[34:]))
	}
}
