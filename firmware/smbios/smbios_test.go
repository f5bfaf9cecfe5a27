package smbios

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	usmbios "github.com/u-root/u-root/pkg/smbios"

	"github.com/gvmspawn/gvmspawn/vmm/layout"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

func config() Config {
	return Config{
		UUID:         [16]byte{0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xf0, 0x01, 2, 3, 4, 5, 6, 7, 8},
		Manufacturer: "gvmspawn", Product: "gvmspawn machine", Version: "1", Serial: "s", SKU: "k", Family: "f",
		BIOSVersion: "0.1",
		RAM:         []Range{{0, 3 << 30}, {4 << 30, 61 << 30}},
		OEMStrings:  []string{"io.systemd.credential:a=b", "second"},
	}
}

func table(t *testing.T, c Config) []byte {
	t.Helper()
	b, err := Table(c)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// structure is one parsed by the test's own reading of §6.1.
type structure struct {
	kind, length byte
	handle       uint16
	formatted    []byte
	strings      []string
}

func parse(t *testing.T, b []byte) (all []structure) {
	t.Helper()
	for len(b) > 0 {
		s := structure{kind: b[0], length: b[1], handle: binary.LittleEndian.Uint16(b[2:]), formatted: b[:b[1]]}
		end := bytes.Index(b[s.length:], []byte{0, 0})
		if end < 0 {
			t.Fatal("structure without end")
		}
		if end > 0 {
			s.strings = strings.Split(string(b[s.length:int(s.length)+end]), "\x00")
		}
		all = append(all, s)
		b = b[int(s.length)+end+2:]
	}
	return all
}

// TestStructures: lengths of SMBIOS 3.0, unique handles, end-of-table last.
func TestStructures(t *testing.T) {
	all := parse(t, table(t, config()))
	want := []struct{ kind, length byte }{
		{0, 0x18}, {1, 0x1b}, {3, 0x16}, {11, 5}, {16, 0x17}, {17, 0x28}, {19, 0x1f}, {19, 0x1f}, {32, 0xb}, {127, 4},
	}
	if len(all) != len(want) {
		t.Fatalf("%d structures, want %d", len(all), len(want))
	}
	for i, s := range all {
		if s.kind != want[i].kind || s.length != want[i].length || int(s.handle) != i {
			t.Errorf("structure %d: type %d, length %#x, handle %d; want %+v", i, s.kind, s.length, s.handle, want[i])
		}
	}
}

// TestUUID: §7.2.1, the first three fields are little-endian; u-root reads it
// the way Linux prints it.
func TestUUID(t *testing.T) {
	tab := table(t, config())
	info, err := usmbios.ParseInfo(EntryPoint(0x1000, uint32(len(tab))), tab)
	if err != nil {
		t.Fatal(err)
	}
	sys, err := info.GetSystemInfo()
	if err != nil {
		t.Fatal(err)
	}
	if got := sys.UUID.String(); got != "12345678-9abc-def0-0102-030405060708" {
		t.Errorf("UUID %s", got)
	}
	if sys.Manufacturer != "gvmspawn" || sys.ProductName != "gvmspawn machine" || sys.SerialNumber != "s" || sys.Family != "f" {
		t.Errorf("system: %+v", sys)
	}
	bios, err := info.GetBIOSInfo()
	if err != nil || bios.Version != "0.1" {
		t.Errorf("BIOS: %+v, %v", bios, err)
	}
	if info.MajorVersion() != 3 {
		t.Errorf("version %d.%d", info.MajorVersion(), info.MinorVersion())
	}
	dimm, err := info.GetMemoryDevices()
	if err != nil || len(dimm) != 1 || dimm[0].GetSizeBytes() != 64<<30 {
		t.Errorf("memory: %v, %v", dimm, err)
	}
}

// TestEntryPoint: §5.2.2, checksum over the whole structure.
func TestEntryPoint(t *testing.T) {
	e := EntryPoint(0xbff0_0000, 0x123)
	var sum byte
	for _, v := range e {
		sum += v
	}
	if sum != 0 || len(e) != 24 {
		t.Errorf("entry point % x", e)
	}
	if _, e64, err := usmbios.ParseEntry(e); err != nil || e64.StructTableAddr != 0xbff0_0000 || e64.StructMaxSize != 0x123 {
		t.Errorf("u-root: %+v, %v", e64, err)
	}
}

// TestManyOEMStrings: §7.12, a structure counts its strings in a byte, so more
// than 255 need more structures; no string is lost, cut or reordered. Beyond
// what Linux can copy none are counted.
func TestManyOEMStrings(t *testing.T) {
	c := config()
	c.OEMStrings = nil
	for i := range 1000 {
		c.OEMStrings = append(c.OEMStrings, fmt.Sprintf("string-%d", i))
	}
	c.OEMStrings = append(c.OEMStrings, strings.Repeat("A", 1<<20*4/3))
	var got []string
	n, copied, uncounted := 0, 0, false
	for _, s := range parse(t, table(t, c)) {
		if s.kind == 11 {
			n++
			if count := int(s.formatted[4]); count != 0 && count != len(s.strings) {
				t.Errorf("count %d, %d strings", count, len(s.strings))
			} else if count != 0 && uncounted {
				t.Error("counted strings after uncounted ones")
			} else {
				uncounted = count == 0
				for _, v := range s.strings[:count] {
					copied += len(v)
				}
			}
			got = append(got, s.strings...)
		}
	}
	if copied == 0 || copied > linuxCopies {
		t.Errorf("Linux copies %d bytes", copied)
	}
	if n != 5 || strings.Join(got, "\n") != strings.Join(c.OEMStrings, "\n") {
		t.Errorf("%d structures with %d strings", n, len(got))
	}
}

func TestBadStrings(t *testing.T) {
	for _, s := range []string{"", "a\x00b"} {
		c := config()
		c.OEMStrings = []string{"good", s}
		if _, err := Table(c); err == nil || !strings.Contains(err.Error(), "OEM string 2") {
			t.Errorf("%q: %v", s, err)
		}
	}
}

// TestMemorySizes: §7.18.2 and §7.18.5, the units of the size field.
func TestMemorySizes(t *testing.T) {
	for _, c := range []struct {
		size     uint64
		field    uint16
		extended uint32
	}{
		{4 << 10, 0x8004, 0},
		{16 << 20, 16, 0},
		{0x7ffe << 20, 0x7ffe, 0},
		{0x7fff << 20, 0x7fff, 0x7fff},
		{1 << 42, 0x7fff, 1 << 22},
	} {
		for _, s := range parse(t, table(t, Config{RAM: []Range{{0, c.size}}})) {
			if s.kind != 17 {
				continue
			}
			field, ext := le.Uint16(s.formatted[0xc:]), le.Uint32(s.formatted[0x1c:])
			if field != c.field || ext != c.extended {
				t.Errorf("%#x bytes: size %#x, extended %#x", c.size, field, ext)
			}
		}
	}
}

func TestWrite(t *testing.T) {
	m := mem.New()
	defer m.Close()
	if _, err := m.Add("ram", 0, 16<<20, mem.RAM); err != nil {
		t.Fatal(err)
	}
	c := config()
	c.OEMStrings = append(c.OEMStrings, strings.Repeat("x", 2<<20))
	r, err := Write(m, 16<<20, c)
	if err != nil {
		t.Fatal(err)
	}
	want := table(t, c)
	got := make([]byte, len(want))
	if err := m.ReadAt(got, r.Base); err != nil || !bytes.Equal(got, want) {
		t.Errorf("table at %#x differs (%v)", r.Base, err)
	}
	if r.Base%layout.PageSize != 0 || uint64(r.Base)+r.Size != 16<<20 || r.Size < uint64(len(want)) {
		t.Errorf("reserved %#x+%#x for %#x bytes", r.Base, r.Size, len(want))
	}
	entry := make([]byte, 24)
	if err := m.ReadAt(entry, layout.SMBIOSEntry); err != nil || !bytes.Equal(entry, EntryPoint(r.Base, uint32(len(want)))) {
		t.Errorf("entry point % x, %v", entry, err)
	}
	if _, err := Write(m, 2<<20, c); err == nil {
		t.Error("a table over the kernel's start was accepted")
	}
	if _, err := Write(m, 64<<20, c); err == nil {
		t.Error("a table outside RAM was accepted")
	}
}

// TestDmidecode: the reference reader prints what was put in, without complaint.
func TestDmidecode(t *testing.T) {
	path, err := exec.LookPath("dmidecode")
	if err != nil {
		path = "/usr/sbin/dmidecode"
		if _, err := os.Stat(path); err != nil {
			t.Skip("dmidecode (Debian package dmidecode) is not installed")
		}
	}
	tab := table(t, config())
	// A dump is the entry point, then the table at offset 32 where it points.
	dump := append(EntryPoint(32, uint32(len(tab))), make([]byte, 8)...)
	file := filepath.Join(t.TempDir(), "dump")
	if err := os.WriteFile(file, append(dump, tab...), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path, "--from-dump", file).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{
		"SMBIOS 3.0.0 present", "UUID: 12345678-9abc-def0-0102-030405060708",
		"String 1: io.systemd.credential:a=b", "String 2: second", "Size: 64 GB",
		"Maximum Capacity: 64 GB", "System is a virtual machine", "Range Size: 61 GB", "No errors detected",
		"Wake-up Type: Power Switch", "Chassis Information",
	} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("no %q", want)
		}
	}
	for _, bad := range []string{"<BAD", "OUT OF SPEC", "Invalid", "TRUNCATED", "Wrong", "broken"} {
		if bytes.Contains(out, []byte(bad)) {
			t.Errorf("dmidecode says %q", bad)
		}
	}
	if t.Failed() {
		t.Logf("%s", out)
	}
}
