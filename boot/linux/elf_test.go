package linux

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/layout"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// vmlinuxSegments is a kernel with a banner across the border of a search chunk.
func vmlinuxSegments() []testSegment {
	segs := testSegments()
	data := bytes.Repeat([]byte{1}, 2<<20)
	copy(data[1<<20-130:], "Linux version %s\x00")
	copy(data[1<<20-8:], "Linux version "+testRelease+" (builder@host)\x00\x00virtiofs\x00")
	segs = append(segs, testSegment{8 * layout.MiB, testPref + 8*layout.MiB, data, 3 << 20})
	return segs
}

func TestContainsCString(t *testing.T) {
	for _, c := range []struct {
		in   string
		want bool
	}{
		{"", false}, {"virtiofs", false}, {"virtiofs\x00", false}, {"\x00virtiofs", false}, {"\x00virtiofs\x00", true},
		{"xvirtiofs\x00\x00virtiofs\x00", true}, {"\x00virtiofs.\x00virtiofsx\x00avirtiofs\x00", false}, {"\x00virtvirtiofs\x00virtiofs\x00\x00", true},
	} {
		if got := containsCString([]byte(c.in), []byte("virtiofs")); got != c.want {
			t.Errorf("%q: %v", c.in, got)
		}
	}
}

func TestVmlinux(t *testing.T) {
	file := buildELF(testPref+0x43, vmlinuxSegments(), nil)
	img := openBytes(t, file)
	if img.Format() != FormatELF || img.Release() != testRelease {
		t.Errorf("%v, release %q", img.Format(), img.Release())
	}
	m := newMemory(t, 64*layout.MiB)
	more := func(k Kernel) ([]Initrd, error) {
		if found, known := k.HasString("virtiofs"); !found || !known {
			t.Error("virtiofs was not found in the kernel")
		}
		return nil, nil
	}
	r, err := Load(Boot{Memory: m, Image: img, MoreInitrds: more})
	if err != nil {
		t.Fatal(err)
	}
	if r.RIP != testPref+0x43 || r.GPR[vcpu.RSI] != layout.ZeroPage {
		t.Errorf("RIP %#x", r.RIP)
	}
	checkKernel(t, m, vmlinuxSegments())
	zp := m.Regions()[0].Bytes()[layout.ZeroPage:]
	if string(zp[hdrMagic:hdrMagic+4]) != "HdrS" || binary.LittleEndian.Uint16(zp[hdrVersion:]) < protocol64 {
		t.Error("boot_params without a setup header")
	}
}

// A bzImage without kernel_version says its release once it is unpacked.
func TestReleaseOfUnpackedKernel(t *testing.T) {
	file := buildBzImage(pack(t, CompressionLZ4, buildELF(testPref, vmlinuxSegments(), nil)), 0)
	img := openBytes(t, edit(file, 0x20e, 0, 0))
	got := ""
	_, err := Load(Boot{Memory: newMemory(t, 64*layout.MiB), Image: img, MoreInitrds: func(k Kernel) ([]Initrd, error) {
		got = k.Release()
		return nil, nil
	}})
	if err != nil || img.Release() != "" || got != testRelease {
		t.Errorf("%v, %q, %q", err, img.Release(), got)
	}
}

// debug/elf is the second opinion on the program headers.
func TestELFAgreesWithDebugELF(t *testing.T) {
	file := buildELF(testPref, vmlinuxSegments(), nil)
	ours, err := parseELF(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint64(file[40:], 0) // e_shoff
	theirs, err := elf.NewFile(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	if ours.entry != theirs.Entry || len(ours.loads) != len(theirs.Progs) {
		t.Fatalf("%+v", ours)
	}
	for i, p := range theirs.Progs {
		if s := ours.loads[i]; s.off != p.Off || s.paddr != p.Paddr || s.vaddr != p.Vaddr || s.filesz != p.Filesz || s.memsz != p.Memsz {
			t.Errorf("segment %d: %+v, debug/elf %+v", i, s, p)
		}
	}
}

// pvhSegments is a kernel whose entry is virtual, so only PVH can enter it.
func pvhSegments() ([]testSegment, *testSegment) {
	segs := testSegments()
	note := &testSegment{off: segs[0].off + 0x100, paddr: segs[0].paddr + 0x100, data: xenNote(testPref + 0x80)}
	note.memsz = uint64(len(note.data))
	copy(segs[0].data[0x100:], note.data)
	return segs, note
}

// pvh.pandoc, "the state that the domain is started in", and start_info.h.
func TestPVH(t *testing.T) {
	segs, note := pvhSegments()
	file := buildELF(0xffff_ffff_8000_0000, segs, note)
	for _, bz := range []bool{false, true} {
		if bz {
			file = buildBzImage(pack(t, CompressionGzip, buildELF(testPref, segs, note)), 0)
		}
		m := newMemory(t, 64*layout.MiB)
		entry := EntryAuto
		if bz {
			entry = EntryPVH
		}
		r, err := Load(Boot{Memory: m, Image: openBytes(t, file), RSDP: layout.RSDP, CommandLine: "a b", Entry: entry,
			Initrds: []Initrd{{"x", 6, bytes.NewReader([]byte("initrd"))}}})
		if err != nil {
			t.Fatal(err)
		}
		if r.RIP != testPref+0x80 || r.CR0&^(1<<4) != 1 || r.CR4 != 0 || r.EFER != 0 || r.GPR[vcpu.RBX] != layout.PVHInfo {
			t.Errorf("state %+v", r)
		}
		if cs := r.Seg[vcpu.CS]; cs.Base != 0 || cs.Limit != 0xffffffff || cs.Attr&(1<<14) == 0 || cs.Attr&(1<<13) != 0 {
			t.Errorf("CS %+v is not a flat 32-bit segment", cs)
		}
		checkStartInfo(t, m.Regions()[0].Bytes())
	}
}

func checkStartInfo(t *testing.T, ram []byte) {
	le, p := binary.LittleEndian, ram[layout.PVHInfo:]
	if le.Uint32(p) != 0x336ec578 || le.Uint32(p[4:]) != 1 || le.Uint32(p[12:]) != 1 || le.Uint64(p[32:]) != layout.RSDP {
		t.Errorf("start info % x", p[:56])
	}
	if c := ram[le.Uint64(p[24:]):]; string(c[:4]) != "a b\x00" {
		t.Errorf("command line %q", c[:4])
	}
	mod := ram[le.Uint64(p[16:]):]
	if d := ram[le.Uint64(mod):][:le.Uint64(mod[8:])]; string(d) != "initrd" {
		t.Errorf("module %q", d)
	}
	mm := ram[le.Uint64(p[40:]):]
	if le.Uint32(p[48:]) != 4 || le.Uint64(mm[2*24:]) != 0x100000 || le.Uint64(mm[2*24+8:]) != 63*layout.MiB || le.Uint32(mm[2*24+16:]) != 1 {
		t.Errorf("memory map % x", mm[:4*24])
	}
}

func TestFindXenEntry(t *testing.T) {
	n := xenNote(0x1000)
	for i := range n {
		if v, ok := findXenEntry(n[:i]); ok {
			t.Errorf("a note cut at %d gives %#x", i, v)
		}
	}
	if v, ok := findXenEntry(n); !ok || v != 0x1000 {
		t.Errorf("%#x, %v", v, ok)
	}
}
