package acpi

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// apply runs the script as firmware does, with the tables and the generation
// identifier's page at addresses.
func (l Loadable) apply(tables, generation mem.GPA) (tablesOut, rsdpOut []byte) {
	files := map[string][]byte{TablesFile: append([]byte(nil), l.Tables...), RSDPFile: append([]byte(nil), l.RSDP...)}
	name := func(b []byte) string {
		n := 0
		for n < nameSize && b[n] != 0 {
			n++
		}
		return string(b[:n])
	}
	le := binary.LittleEndian
	for s := l.Script; len(s) >= commandSize; s = s[commandSize:] {
		file := files[name(s[4:])]
		switch le.Uint32(s) {
		case commandPointer:
			at := file[le.Uint32(s[4+2*nameSize:]):]
			if name(s[4+nameSize:]) == GenerationFile {
				le.PutUint32(at, le.Uint32(at)+uint32(generation))
			} else {
				le.PutUint64(at, le.Uint64(at)+uint64(tables))
			}
		case commandChecksum:
			b := s[4+nameSize:]
			off, start, length := le.Uint32(b), le.Uint32(b[4:]), le.Uint32(b[8:])
			file[off] = checksum(file[start : start+length])
		}
	}
	return files[TablesFile], files[RSDPFile]
}

// TestLoadable: what firmware makes of the script is what Build would have put
// there, but for the FADT's 32-bit pointer.
func TestLoadable(t *testing.T) {
	c := Config{CPUs: 3, RAMEnd: 1 << 30, FWCfg: true, Generation: 40, Tables: []Table{{"TEST", 1, []byte{1, 2, 3}}},
		PCI: &PCI{ECAM: 0xb000_0000, Buses: 256, Low: []Window{{0xc000_0000, 0xfc00_0000}}, High: Window{1 << 40, 1 << 41}}}
	l, err := BuildLoadable(c)
	if err != nil {
		t.Fatal(err)
	}
	const at = mem.GPA(0x1_2345_6000)
	const page = mem.GPA(0x7ff0_0000)
	c.Generation += page
	want, end, err := c.build(at)
	if err != nil {
		t.Fatal(err)
	}
	tables, root := l.apply(at, page)
	if len(tables) != int(end-at) || !bytes.Equal(root, want[0].Bytes) {
		t.Errorf("%d bytes of tables, want %d; RSDP % x, want % x", len(tables), end-at, root, want[0].Bytes)
	}
	for _, b := range want[1:] {
		got := tables[b.Address-at:][:len(b.Bytes)]
		sig := string(got[:4])
		if checksum(got) != 0 {
			t.Errorf("%s: the checksum is wrong", sig)
		}
		if sig == "FACP" {
			if binary.LittleEndian.Uint32(got[fadtDSDT:]) != 0 {
				t.Error("FADT: there is a 32-bit pointer")
			}
			copy(got[fadtDSDT:], b.Bytes[fadtDSDT:][:4])
			got[tableChecksum] = b.Bytes[tableChecksum]
		}
		if !bytes.Equal(got, b.Bytes) {
			t.Errorf("%s differs:\n% x\n% x", sig, got, b.Bytes)
		}
	}
	if len(l.Script)%commandSize != 0 {
		t.Errorf("the script has %d bytes", len(l.Script))
	}
}
