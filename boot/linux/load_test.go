package linux

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/u-root/u-root/pkg/boot/bzimage"

	"github.com/gvmspawn/gvmspawn/vmm/layout"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// checkKernel checks that RAM from 1 MiB to the end holds the segments and zeros.
func checkKernel(t *testing.T, m *mem.Memory, segs []testSegment) {
	t.Helper()
	ram := m.Regions()[0].Bytes()
	want := make([]byte, len(ram))
	for _, s := range segs {
		copy(want[s.paddr:], s.data)
	}
	for at := layout.KernelStart; at < len(ram); at += layout.PageSize {
		if !bytes.Equal(ram[at:at+layout.PageSize], want[at:at+layout.PageSize]) {
			t.Fatalf("guest page %#x is not what the kernel should have there", at)
		}
	}
}

func TestLoadUnpacksEveryCompression(t *testing.T) {
	for c := CompressionNone; c <= CompressionBzip2; c++ {
		t.Run(c.String(), func(t *testing.T) {
			img := testImage(t, c)
			if img.Compression() != c || img.Format() != FormatBzImage || img.Release() != testRelease {
				t.Errorf("got %v %v %q", img.Compression(), img.Format(), img.Release())
			}
			m := newMemory(t, 64*layout.MiB)
			regs, err := Load(Boot{Memory: m, Image: img})
			if err != nil {
				t.Fatal(err)
			}
			if regs.RIP != testPref+0x43 {
				t.Errorf("RIP %#x", regs.RIP)
			}
			checkKernel(t, m, testSegments())
		})
	}
}

// The payload of several lz4 blocks is expanded side by side.
func TestLoadManyLZ4Blocks(t *testing.T) {
	segs := []testSegment{{hugePage, testPref, pattern(9, 30*layout.MiB+5), 31 * layout.MiB}}
	m := newMemory(t, 64*layout.MiB)
	img := openBytes(t, buildBzImage(pack(t, CompressionLZ4, buildELF(testPref, segs, nil)), 0))
	if _, err := Load(Boot{Memory: m, Image: img}); err != nil {
		t.Fatal(err)
	}
	checkKernel(t, m, segs)
}

// u-root's bzImage parser is the second opinion on what is in the file.
func TestAgreesWithURoot(t *testing.T) {
	elf := buildELF(testPref, testSegments(), nil)
	file := buildBzImage(pack(t, CompressionZstd, elf), 0)
	var b bzimage.BzImage
	if err := b.UnmarshalBinary(file); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.KernelCode, elf) {
		t.Error("u-root unpacks something else")
	}
	if v, err := b.KVer(); err != nil || !strings.HasPrefix(v, testRelease+" ") {
		t.Errorf("u-root reads the version %q, %v", v, err)
	}
}

// boot.rst, "64-bit Boot Protocol".
func TestEntryStateLongMode(t *testing.T) {
	m := newMemory(t, 64*layout.MiB)
	r, err := Load(Boot{Memory: m, Image: testImage(t, CompressionGzip)})
	if err != nil {
		t.Fatal(err)
	}
	if r.GPR[vcpu.RSI] != layout.ZeroPage || r.RFLAGS&(1<<9) != 0 {
		t.Errorf("RSI %#x, RFLAGS %#x", r.GPR[vcpu.RSI], r.RFLAGS)
	}
	if r.CR0&(1<<31|1) != 1<<31|1 || r.CR4&(1<<5) == 0 || r.EFER != 1<<8|1<<10 {
		t.Errorf("not in long mode: CR0 %#x CR4 %#x EFER %#x", r.CR0, r.CR4, r.EFER)
	}
	// "__BOOT_CS(0x10) and __BOOT_DS(0x18); both descriptors must be 4G flat segment"
	if r.Seg[vcpu.CS].Selector != 0x10 || r.Seg[vcpu.DS].Selector != 0x18 || r.Seg[vcpu.ES].Selector != 0x18 || r.Seg[vcpu.SS].Selector != 0x18 {
		t.Errorf("segments %+v", r.Seg)
	}
	ram := m.Regions()[0].Bytes()
	for i, d := range []uint64{2: 0x00af9b000000ffff, 3: 0x00cf93000000ffff} {
		if got := binary.LittleEndian.Uint64(ram[int(r.GDT.Base)+i*8:]); got != d {
			t.Errorf("GDT[%d] = %#x, want %#x", i, got, d)
		}
	}
	for _, va := range []uint64{0, 0x7123, testPref, 3<<30 + 12345, 4<<30 - 1} {
		if pa, ok := walk(ram, r.CR3, va); !ok || pa != va {
			t.Errorf("address %#x is mapped to %#x, %v", va, pa, ok)
		}
	}
}

// walk translates va by four-level paging (Intel SDM vol. 3A §4.5), 2 MiB pages.
func walk(ram []byte, cr3, va uint64) (uint64, bool) {
	table := cr3
	for shift := 39; ; shift -= 9 {
		e := binary.LittleEndian.Uint64(ram[table+va>>shift&511*8:])
		if e&1 == 0 {
			return 0, false
		}
		table = e &^ 0xfff
		if e&(1<<7) != 0 {
			return table + va&(1<<shift-1), true
		}
	}
}

func TestBootParams(t *testing.T) {
	m := newMemory(t, 64*layout.MiB)
	initrds := []Initrd{
		{"one", 5, strings.NewReader("11111")},
		{"two", 4, strings.NewReader("2222")},
	}
	more := func(k Kernel) ([]Initrd, error) {
		if found, known := k.HasString("virtiofs"); found || !known {
			t.Errorf("HasString: %v %v", found, known)
		}
		return []Initrd{{"three", 3, strings.NewReader("333")}}, nil
	}
	_, err := Load(Boot{Memory: m, Image: testImage(t, CompressionLZ4), Initrds: initrds, MoreInitrds: more,
		CommandLine: "console=hvc0 rw", RSDP: layout.RSDP, Random: bytes.NewReader(pattern(5, 64))})
	if err != nil {
		t.Fatal(err)
	}
	ram := m.Regions()[0].Bytes()
	zp := ram[layout.ZeroPage:][:bpSize]
	var h bzimage.LinuxHeader // u-root's layout of the same fields
	if err := h.UnmarshalBinary(zp); err != nil {
		t.Fatal(err)
	}
	if h.HeaderMagic != bzimage.HeaderMagic || h.Protocolversion != protocolOurs || h.TypeOfLoader != 0xff || h.Loadflags&1 == 0 || h.PrefAddress != testPref {
		t.Errorf("setup header %+v", h)
	}
	if got := ram[h.RamdiskImage:][:h.RamdiskSize]; string(got) != "11111\x00\x00\x002222333" {
		t.Errorf("initrd %q", got)
	}
	if end := h.RamdiskImage + h.RamdiskSize; end > 64*layout.MiB || end < 64*layout.MiB-layout.PageSize {
		t.Errorf("the initrd ends at %#x, not at the end of RAM", end)
	}
	if got := ram[h.Cmdlineptr:][:16]; string(got) != "console=hvc0 rw\x00" {
		t.Errorf("command line %q", got)
	}
	if got := binary.LittleEndian.Uint64(zp[0x70:]); got != layout.RSDP {
		t.Errorf("acpi_rsdp_addr %#x", got)
	}
	if zp[0x1ef] != 0 {
		t.Error("sentinel is set: the kernel would distrust the page")
	}
	if d := ram[h.SetupData:]; binary.LittleEndian.Uint32(d[8:]) != 9 || !bytes.Equal(d[16:48], pattern(5, 32)) {
		t.Errorf("setup_data % x", d[:48])
	}
	checkE820(t, zp)
}

func checkE820(t *testing.T, zp []byte) {
	want := []Range{{0, 0x9fc00, E820RAM}, {0x9fc00, 0x60400, E820Reserved}, {0x100000, 63 * layout.MiB, E820RAM}, {layout.ECAM, layout.ECAMSize, E820Reserved}}
	var got []Range
	for i := range int(zp[bpE820Entries]) {
		e, le := zp[bpE820Table+i*20:], binary.LittleEndian
		got = append(got, Range{mem.GPA(le.Uint64(e)), le.Uint64(e[8:]), E820Type(le.Uint32(e[16:]))})
	}
	if !slices.Equal(got, want) {
		t.Errorf("E820 %x, want %x", got, want)
	}
}

func TestMemoryMap(t *testing.T) {
	m := newMemory(t, 5*layout.GiB)
	if _, err := m.Add("window", 1<<36, 1<<30, mem.Window); err != nil {
		t.Fatal(err)
	}
	got, err := memoryMap(m, []Range{{0x2000, 0x1000, E820ACPI}, {layout.HighRAMStart + 2*layout.GiB - 0x1000, 0x1000, E820NVS}})
	want := []Range{{0, 0x2000, E820RAM}, {0x2000, 0x1000, E820ACPI}, {0x3000, 0x9cc00, E820RAM}, {0x9fc00, 0x60400, E820Reserved},
		{0x100000, 3*layout.GiB - 0x100000, E820RAM}, {layout.ECAM, layout.ECAMSize, E820Reserved},
		{layout.HighRAMStart, 2*layout.GiB - 0x1000, E820RAM}, {layout.HighRAMStart + 2*layout.GiB - 0x1000, 0x1000, E820NVS}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%x, %v\nwant %x", got, err, want)
	}
	if _, err := memoryMap(m, []Range{{0x9f000, 0x1000, E820Reserved}}); err == nil {
		t.Error("an overlap was accepted")
	}
	if _, err := memoryMap(m, make([]Range, 200)); err == nil {
		t.Error("200 ranges were accepted")
	}
}

// An initrd that does not fit below initrd_addr_max goes above, if the kernel can take that.
func TestInitrdPlace(t *testing.T) {
	big := newMemory(t, 6*layout.GiB)
	for _, tt := range []struct {
		size      uint64
		max       uint32
		above4G   bool
		want      uint64
		wantFound bool
	}{
		{layout.MiB, 0x7fffffff, true, 2*layout.GiB - layout.MiB, true},
		{1, 0x7fffffff, true, 2*layout.GiB - layout.PageSize, true},
		{layout.MiB, 0x37ffffff, true, 0x38000000 - layout.MiB, true},
		{2 * layout.GiB, 0x7fffffff, true, layout.GiB, true},
		{2 * layout.GiB, 0x7fffffff, false, 0, false},
		{2*layout.GiB + 900*layout.MiB, 0x7fffffff, true, 4*layout.GiB + 124*layout.MiB, true},
		{3 * layout.GiB, 0x7fffffff, true, layout.HighRAMStart, true},
		{4 * layout.GiB, 0x7fffffff, true, 0, false},
		{1 << 63, 0x7fffffff, true, 0, false},
	} {
		img := &Image{format: FormatBzImage}
		img.hdr.InitrdAddrMax = tt.max
		if tt.above4G {
			img.hdr.XLoadFlags = xlfAbove4G
		}
		l := &loader{Boot: Boot{Memory: big}, img: img, ram: big.Regions()[0].Bytes(), k: Kernel{high: 100 * layout.MiB}}
		if tt.size == 2*layout.GiB+900*layout.MiB {
			l.k.high = 200 * layout.MiB
		}
		if got, ok := l.initrdPlace(tt.size); ok != tt.wantFound || ok && got != tt.want {
			t.Errorf("%+v: got %#x, %v", tt, got, ok)
		}
	}
}

func TestMoveSegments(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		const base, room = 1 << 12, 1 << 16
		ram := make([]byte, room)
		for i := range ram {
			ram[i] = byte(rng.Uint32())
		}
		var loads []segment
		off, paddr := uint64(rng.IntN(1000)), uint64(rng.IntN(9000))
		for range 1 + rng.IntN(5) {
			n := uint64(rng.IntN(4000))
			loads = append(loads, segment{off: off, paddr: paddr, filesz: n, memsz: n})
			off += n + uint64(rng.IntN(3000))
			paddr += n + uint64(rng.IntN(3000))
		}
		if rng.IntN(10) == 0 { // an order in the file that is not that in memory
			loads[0].off, loads[len(loads)-1].off = loads[len(loads)-1].off, loads[0].off
		}
		before := slices.Clone(ram)
		moveSegments(ram, base, loads)
		for _, s := range loads {
			if !bytes.Equal(ram[s.paddr:s.paddr+s.filesz], before[base+s.off:][:s.filesz]) {
				t.Fatalf("segment %+v of %+v is damaged", s, loads)
			}
		}
	}
}

func TestEntryDecompressor(t *testing.T) {
	img := testImage(t, CompressionZstd)
	m := newMemory(t, 64*layout.MiB)
	r, err := Load(Boot{Memory: m, Image: img, Entry: EntryDecompressor})
	if err != nil {
		t.Fatal(err)
	}
	if r.RIP != testPref+0x200 {
		t.Errorf("RIP %#x", r.RIP)
	}
	file := make([]byte, img.size-img.setupSize())
	if _, err := img.r.ReadAt(file, img.setupSize()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(m.Regions()[0].Bytes()[testPref:][:len(file)], file) {
		t.Error("the protected-mode part is not at pref_address")
	}
}

// Loading twice, as after a reset, works if RAM was discarded in between.
func TestLoadAgain(t *testing.T) {
	img := testImage(t, CompressionZstd)
	m := newMemory(t, 64*layout.MiB)
	for range 2 {
		if _, err := Load(Boot{Memory: m, Image: img}); err != nil {
			t.Fatal(err)
		}
		checkKernel(t, m, testSegments())
		if err := m.Discard(0, 64*layout.MiB); err != nil {
			t.Fatal(err)
		}
	}
}

// TestInitrdAvoidsReservedRanges: SMBIOS tables lie at the top of the RAM, where
// the initrd would go.
func TestInitrdAvoidsReservedRanges(t *testing.T) {
	m := newMemory(t, 256*layout.MiB)
	l := &loader{Boot: Boot{Memory: m}, img: &Image{format: FormatELF}, ram: m.Regions()[0].Bytes()}
	l.Reserved = []Range{
		{Base: 250 * layout.MiB, Size: layout.PageSize},
		{Base: 256*layout.MiB - 3*layout.PageSize, Size: 3 * layout.PageSize},
	}
	for _, tt := range []struct{ size, want uint64 }{
		{1, 256*layout.MiB - 4*layout.PageSize},
		{5 * layout.MiB, 251*layout.MiB - 3*layout.PageSize},
		{6 * layout.MiB, 244 * layout.MiB},
	} {
		if got, ok := l.initrdPlace(tt.size); !ok || got != tt.want {
			t.Errorf("%d bytes: got %#x, %v, want %#x", tt.size, got, ok, tt.want)
		}
	}
	l.Reserved = []Range{{Base: 0, Size: 256 * layout.MiB}}
	if at, ok := l.initrdPlace(1); ok {
		t.Errorf("found %#x where all is reserved", at)
	}
}
