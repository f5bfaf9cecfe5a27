package acpi

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	uacpi "github.com/u-root/u-root/pkg/acpi"

	"github.com/gvmspawn/gvmspawn/firmware/acpi/aml"
	"github.com/gvmspawn/gvmspawn/vmm/layout"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

func small() Config { return Config{CPUs: 2, RAMEnd: 1 << 30} }

// full has everything that tables can tell.
func full() Config {
	return Config{
		CPUs: layout.MaxVCPUs, RAMEnd: 40 << 30, INTx: true, PIC: true, HotplugSlots: 0xffff_fffe, Generation: 0x1_bfff_f000,
		Devices: []aml.Term{
			VirtioMMIO(0, aml.Edge, 10),
			TPM(0xfed4_0000, 0x5000),
			PanicDevice(),
		},
		Events: []Event{{2, aml.Notify("VMGN", 0x80)}},
		Tables: []Table{
			TPM2(0xfed4_0040, 0, 0),
			Watchdog{Base: 0xfed2_1000, Tick: 100 * time.Millisecond, MinCount: 10, MaxCount: 1000}.Table(),
		},
	}
}

func build(t *testing.T, c Config) []Blob {
	t.Helper()
	blobs, err := Build(c)
	if err != nil {
		t.Fatal(err)
	}
	return blobs
}

func sum(b []byte) (s byte) {
	for _, v := range b {
		s += v
	}
	return s
}

// TestPlacement: the root pointer is where a system scans (§5.2.5.1), tables
// are 16-byte aligned, do not overlap and stay inside their room.
func TestPlacement(t *testing.T) {
	for _, c := range []Config{small(), full()} {
		blobs := build(t, c)
		if blobs[0].Address != layout.RSDP || layout.RSDP%16 != 0 {
			t.Errorf("RSDP at %#x", blobs[0].Address)
		}
		next := mem.GPA(layout.ACPITables)
		for _, b := range blobs[1:] {
			if b.Address < next || b.Address%16 != 0 {
				t.Errorf("%s at %#x, expected from %#x", b.Bytes[:4], b.Address, next)
			}
			next = b.Address + mem.GPA(len(b.Bytes))
		}
		if next > layout.ACPITablesEnd {
			t.Errorf("tables end at %#x", next)
		}
	}
}

// TestRSDP: §5.2.5.3, both checksums.
func TestRSDP(t *testing.T) {
	b := build(t, small())
	r := b[0].Bytes
	if string(r[:8]) != "RSD PTR " || r[15] != 2 || sum(r[:20]) != 0 || sum(r) != 0 {
		t.Errorf("bad RSDP % x", r)
	}
	if x := binary.LittleEndian.Uint64(r[24:]); mem.GPA(x) != b[1].Address {
		t.Errorf("XSDT address %#x", x)
	}
}

// TestHeaders: §5.2.6, with u-root's parser as second opinion; the XSDT lists
// every table but itself and the DSDT (§5.2.8).
func TestHeaders(t *testing.T) {
	blobs := build(t, full())
	var listed []byte
	for i, b := range blobs[1:] {
		raw, err := uacpi.NewRaw(b.Bytes)
		if err != nil || len(raw) != 1 {
			t.Fatalf("u-root: %d tables, %v", len(raw), err)
		}
		if int(raw[0].Len()) != len(b.Bytes) || sum(raw[0].Data()) != 0 {
			t.Errorf("%s: bad length or checksum", raw[0].Sig())
		}
		if i >= 2 {
			listed = binary.LittleEndian.AppendUint64(listed, uint64(b.Address))
		}
	}
	var sigs []string
	for _, b := range blobs[1:] {
		sigs = append(sigs, string(b.Bytes[:4]))
	}
	if got := strings.Join(sigs, " "); got != "XSDT DSDT FACP APIC MCFG TPM2 WDAT" {
		t.Errorf("tables: %s", got)
	}
	if !bytes.Equal(blobs[1].Bytes[headerSize:], listed) {
		t.Errorf("XSDT lists % x, want % x", blobs[1].Bytes[headerSize:], listed)
	}
}

// TestFADT: §5.2.9, table 5.9: what hardware-reduced means.
func TestFADT(t *testing.T) {
	blobs := build(t, small())
	f := blobs[3].Bytes
	flags := binary.LittleEndian.Uint32(f[112:])
	if len(f) != 276 || f[8] != 6 || f[131] != 5 {
		t.Errorf("FADT of %d bytes, revision %d.%d", len(f), f[8], f[131])
	}
	if flags&(1<<20) == 0 || flags&(1<<10) == 0 || flags&(1<<4) == 0 {
		t.Errorf("flags %#x", flags)
	}
	if got := binary.LittleEndian.Uint64(f[140:]); mem.GPA(got) != blobs[2].Address {
		t.Errorf("X_DSDT %#x", got)
	}
	for _, c := range []struct {
		off  int
		port uint64
	}{{116, ResetPort}, {244, SleepControlPort}, {256, SleepStatusPort}} {
		gas := f[c.off:]
		if gas[0] != 1 || gas[1] != 8 || binary.LittleEndian.Uint64(gas[4:]) != c.port {
			t.Errorf("register at %d: % x", c.off, gas[:12])
		}
	}
	if f[108] != 0x32 {
		t.Errorf("CENTURY %#x", f[108])
	}
	if boot := binary.LittleEndian.Uint16(f[109:]); boot&(1<<1) != 0 || boot&(1<<3) != 0 || boot&(1<<5) != 0 {
		t.Errorf("IAPC_BOOT_ARCH %#x announces an 8042, forbids MSI or denies the RTC", boot)
	}
}

// TestMADT counts structures by type (§5.2.12).
func TestMADT(t *testing.T) {
	count := func(c Config) (n [16]int, flags uint32) {
		b := build(t, c)[4].Bytes
		for s := b[44:]; len(s) > 0; s = s[s[1]:] {
			n[s[0]]++
		}
		return n, binary.LittleEndian.Uint32(b[40:])
	}
	if n, flags := count(small()); n[0] != 2 || n[1] != 1 || n[2] != 1 || n[4] != 1 || n[9] != 0 || flags != 0 {
		t.Errorf("small: %v, flags %#x", n, flags)
	}
	if n, flags := count(full()); n[0] != 64 || n[2] != 2 || flags != 1 {
		t.Errorf("full: %v, flags %#x", n, flags)
	}
	// §5.2.12.12: a logical processor with an ID of 255 or more is an x2APIC.
	c := small()
	c.APICIDs = []uint32{0, 300}
	if n, _ := count(c); n[0] != 1 || n[9] != 1 || n[10] != 1 {
		t.Errorf("x2APIC: %v", n)
	}
}

func TestBuildErrors(t *testing.T) {
	for _, c := range []Config{
		{CPUs: 0}, {CPUs: 65}, {CPUs: 2, APICIDs: []uint32{0}},
		{CPUs: 1, Events: []Event{{1, nil}}}, {CPUs: 1, Events: []Event{{6, nil}}},
		{CPUs: 1, Events: []Event{{2, nil}, {2, nil}}},
		{CPUs: 1, Tables: []Table{{Signature: "TOOLONG"}}},
		{CPUs: 1, Tables: []Table{{"SSDT", 2, make([]byte, 1<<16)}}},
	} {
		if _, err := Build(c); err == nil {
			t.Errorf("no error for %+v", c)
		}
	}
}

func TestWrite(t *testing.T) {
	m := mem.New()
	defer m.Close()
	if _, err := m.Add("ram", 0, 2<<20, mem.RAM); err != nil {
		t.Fatal(err)
	}
	addr, err := Write(m, small())
	if err != nil {
		t.Fatal(err)
	}
	var b [8]byte
	if err := m.ReadAt(b[:], addr); err != nil || string(b[:]) != "RSD PTR " {
		t.Errorf("at %#x: %q, %v", addr, b, err)
	}
	if _, err := Write(mem.New(), small()); err == nil {
		t.Error("no error without memory")
	}
}

// TestIASL: ACPICA's disassembler understands every table without a complaint,
// and its compiler makes the same AML of what it read.
func TestIASL(t *testing.T) {
	iasl, err := exec.LookPath("iasl")
	if err != nil {
		t.Skip("iasl (Debian package acpica-tools) is not installed")
	}
	for name, c := range map[string]Config{"small": small(), "full": full()} {
		for _, b := range build(t, c)[1:] {
			sig := string(b.Bytes[:4])
			t.Run(name+"/"+sig, func(t *testing.T) { checkIASL(t, iasl, sig, b.Bytes) })
		}
	}
}

func checkIASL(t *testing.T, iasl, sig string, table []byte) {
	dir := t.TempDir()
	run := func(args ...string) string {
		cmd := exec.Command(iasl, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("iasl %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	if err := os.WriteFile(filepath.Join(dir, "t.dat"), table, 0o600); err != nil {
		t.Fatal(err)
	}
	run("-d", "t.dat")
	dsl, err := os.ReadFile(filepath.Join(dir, "t.dsl"))
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"Invalid", "Warning", "should be", "Unknown", "incorrect"} {
		if bytes.Contains(dsl, []byte(bad)) {
			t.Errorf("%s: disassembly says %q:\n%s", sig, bad, dsl)
		}
	}
	// -oa: no optimisation, so that the bytes can be compared.
	if out := run("-oa", "-p", "again", "t.dsl"); !strings.Contains(out, " 0 Errors, 0 Warnings") && sig == "DSDT" {
		t.Errorf("%s: %s", sig, out)
	}
	again, err := os.ReadFile(filepath.Join(dir, "again.aml"))
	if err != nil {
		t.Fatal(err)
	}
	if len(again) < headerSize || !bytes.Equal(again[headerSize:], table[headerSize:]) {
		t.Errorf("%s: recompiling gives %d bytes, %d before:\n%s", sig, len(again), len(table), dsl)
	}
}

// TestExecute: ACPICA's interpreter loads the DSDT and runs its methods.
func TestExecute(t *testing.T) {
	acpiexec, err := exec.LookPath("acpiexec")
	if err != nil {
		t.Skip("acpiexec (Debian package acpica-tools) is not installed")
	}
	file := filepath.Join(t.TempDir(), "dsdt.dat")
	if err := os.WriteFile(file, build(t, full())[2].Bytes, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ command, want string }{
		// Memory reads as zero there, so no event is pending.
		{`evaluate \_SB.GED._EVT 9`, "No object was returned"},
		{`evaluate \_S5`, "[Integer] = 0000000000000005"},
		{`resources \_SB.PCI0`, "Address Maximum : 0000002FFFFFFFFF"},
		{`resources \_SB.GED`, "Triggering : Level"},
		// PCI Firmware 3.3 §4.5.1: all that is asked for is granted, but an
		// unknown UUID sets bit 2 of the first word.
		{`evaluate \_SB.PCI0._OSC (5B 4D DB 33 F7 1F 1C 40 96 57 74 41 C0 3D D7 66) 1 3 (00 00 00 00 1F 00 00 00 1F 00 00 00)`,
			"00 00 00 00 1F 00 00 00 1F 00 00 00"},
		{`evaluate \_SB.PCI0._OSC (00) 1 3 (00 00 00 00 1F 00 00 00 1F 00 00 00)`,
			"04 00 00 00 1F 00 00 00 1F 00 00 00"},
	} {
		t.Run(c.command, func(t *testing.T) {
			t.Parallel() // acpiexec takes a second to end, asleep
			out, err := exec.Command(acpiexec, "-b", c.command, file).CombinedOutput()
			if err != nil || !bytes.Contains(out, []byte(c.want)) || bytes.Contains(out, []byte("ACPI Error")) || bytes.Contains(out, []byte("ACPI Warning")) {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
