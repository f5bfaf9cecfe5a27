package linux

import (
	"bytes"
	"encoding/binary"
	"io"
	"os/exec"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz/lzma"

	"github.com/gvmspawn/gvmspawn/vmm/layout"
)

// testSegment is a part of a kernel built for tests.
type testSegment struct {
	off, paddr uint64
	data       []byte
	memsz      uint64
}

const testPref = 16 * layout.MiB

// testSegments resemble a Linux kernel's: the first lies in the file as in
// memory, the next ones are shifted, the last has memory behind its data.
func testSegments() []testSegment {
	return []testSegment{
		{2 * layout.MiB, testPref, pattern(1, 300_000), 300_000},
		{3 * layout.MiB, testPref + layout.MiB, pattern(2, 100_001), 100_001},
		{3*layout.MiB + 0x20000, testPref + layout.MiB + 0x40000, pattern(3, 5000), 5000},
		{3*layout.MiB + 0x28000, testPref + layout.MiB + 0x50000, pattern(4, 700_000), 900_000},
	}
}

// pattern is n bytes that compress somewhat and are different for each seed.
func pattern(seed byte, n int) []byte {
	b := make([]byte, n)
	x := uint32(seed)*2654435761 + 1
	for i := range b {
		if i%7 == 0 {
			x = x*1664525 + 1013904223
		}
		b[i] = byte(x>>24) | 1
	}
	return b
}

// buildELF makes an ELF64 kernel; note, if not nil, becomes a PT_NOTE at notePhys.
func buildELF(entry uint64, segs []testSegment, note *testSegment) []byte {
	le := binary.LittleEndian
	size := uint64(0)
	for _, s := range segs {
		size = max(size, s.off+uint64(len(s.data)))
	}
	b := make([]byte, size)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 2)
	le.PutUint16(b[18:], elfMachineX86)
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[24:], entry)
	le.PutUint64(b[32:], elfHeaderSize)
	le.PutUint64(b[40:], size) // e_shoff: no section headers, so the file's end
	le.PutUint16(b[52:], elfHeaderSize)
	le.PutUint16(b[54:], elfProgSize)
	le.PutUint16(b[58:], 64)
	put := func(kind uint32, s testSegment) {
		n := le.Uint16(b[56:])
		p := b[elfHeaderSize+int(n)*elfProgSize:]
		le.PutUint32(p, kind)
		le.PutUint64(p[8:], s.off)
		le.PutUint64(p[16:], s.paddr+0xffff_ffff_8000_0000)
		le.PutUint64(p[24:], s.paddr)
		le.PutUint64(p[32:], uint64(len(s.data)))
		le.PutUint64(p[40:], s.memsz)
		le.PutUint16(b[56:], n+1)
	}
	for _, s := range segs {
		copy(b[s.off:], s.data)
		put(ptLoad, s)
	}
	if note != nil {
		copy(b[note.off:], note.data)
		put(ptNote, *note)
	}
	return b
}

// xenNote is an ELF note with a 32-bit entry point.
func xenNote(entry uint32) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, 4) // an unrelated note first
	b = le.AppendUint32(b, 1)
	b = le.AppendUint32(b, 1)
	b = append(b, "GNU\x00\x07\x00\x00\x00"...)
	b = le.AppendUint32(b, 4)
	b = le.AppendUint32(b, 4)
	b = le.AppendUint32(b, xenNotePhys32Entry)
	b = append(b, "Xen\x00"...)
	return le.AppendUint32(b, entry)
}

const testRelease = "6.99.0-test-amd64"

// buildBzImage wraps a packed payload, which ends with its unpacked size.
func buildBzImage(payload []byte, initSize uint32) []byte {
	const setupSects, payloadOff = 7, 64
	le := binary.LittleEndian
	b := make([]byte, (setupSects+1)*sectorSize+payloadOff+len(payload))
	b = append(b, make([]byte, -len(b)&15)...)
	b[hdrSetupSects] = setupSects
	le.PutUint32(b[0x1f4:], uint32(len(b)-(setupSects+1)*sectorSize)/16)
	le.PutUint16(b[hdrBootFlag:], bootFlag)
	b[hdrJump], b[hdrJump+1] = 0xeb, 0x6a // header ends at 0x26c
	copy(b[hdrMagic:], "HdrS")
	le.PutUint16(b[hdrVersion:], protocolOurs)
	le.PutUint16(b[0x20e:], 0x400)
	copy(b[0x600:], testRelease+" (builder@host) #1 SMP Thu Jan  1 00:00:00 UTC 1970\x00")
	b[hdrLoadFlags] = loadFlagLoadedHigh
	le.PutUint32(b[0x22c:], defaultInitrdAddrMax)
	le.PutUint32(b[hdrKernelAlign:], hugePage)
	b[0x234] = 1
	le.PutUint16(b[0x236:], xlfKernel64|xlfAbove4G)
	le.PutUint32(b[0x238:], defaultCmdLineSize)
	le.PutUint32(b[0x248:], payloadOff)
	le.PutUint32(b[0x24c:], uint32(len(payload)))
	le.PutUint64(b[0x258:], testPref)
	le.PutUint32(b[0x260:], initSize)
	copy(b[(setupSects+1)*sectorSize+payloadOff:], payload)
	return b
}

// pack compresses b as the kernel's build does, with the size at the end.
func pack(t testing.TB, c Compression, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	var err error
	switch c {
	case CompressionNone:
		out.Write(b)
	case CompressionGzip:
		w = gzip.NewWriter(&out)
	case CompressionZstd:
		w, err = zstd.NewWriter(&out)
	case CompressionLZ4:
		z := lz4.NewWriter(&out)
		w, err = z, z.Apply(lz4.LegacyOption(true))
	case CompressionLZMA:
		w, err = lzma.NewWriter(&out)
	case CompressionXZ:
		return runTool(t, b, "xz", "--check=crc32", "--x86", "--lzma2=dict=32MiB")
	case CompressionBzip2:
		return runTool(t, b, "bzip2", "-9")
	case CompressionLZO:
		out.WriteString("\x89LZO\x00\r\n\x1a\n rest of it")
	case CompressionUnknown:
		out.WriteString("this is no compression")
	}
	if w != nil && err == nil {
		if _, err = w.Write(b); err == nil {
			err = w.Close()
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if c == CompressionGzip {
		return out.Bytes() // ends with the size by itself
	}
	return binary.LittleEndian.AppendUint32(out.Bytes(), uint32(len(b)))
}

// runTool packs b with a program, for the formats that have no packer in Go.
func runTool(t testing.TB, b []byte, name string, args ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skip("no " + name + " to make a payload with")
	}
	cmd := exec.Command(name, append(args, "--stdout")...)
	cmd.Stdin = bytes.NewReader(b)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return binary.LittleEndian.AppendUint32(out, uint32(len(b)))
}

// testImage is a bzImage of the test segments.
func testImage(t testing.TB, c Compression) *Image {
	t.Helper()
	return openBytes(t, buildBzImage(pack(t, c, buildELF(testPref+0x43, testSegments(), nil)), 4*layout.MiB))
}

func openBytes(t testing.TB, b []byte) *Image {
	t.Helper()
	img, err := New("vmlinuz", bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return img
}
