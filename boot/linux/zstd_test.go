package linux

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// zstdFrame is a frame of raw blocks and runs (RFC 8878 §3.1.1.2), with its content.
func zstdFrame(descriptor byte, header []byte, blocks ...any) (frame, content []byte) {
	frame = append([]byte{0x28, 0xb5, 0x2f, 0xfd, descriptor}, header...)
	for i, b := range blocks {
		last := 0
		if i == len(blocks)-1 {
			last = 1
		}
		put := func(kind, size int) {
			h := size<<3 | kind<<1 | last
			frame = append(frame, byte(h), byte(h>>8), byte(h>>16))
		}
		switch b := b.(type) {
		case []byte:
			put(zstdRaw, len(b))
			frame, content = append(frame, b...), append(content, b...)
		case run:
			put(zstdRLE, b.n)
			frame, content = append(frame, b.v), append(content, bytes.Repeat([]byte{b.v}, b.n)...)
		}
	}
	return frame, content
}

type run struct {
	v byte
	n int
}

func someBytes(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return b
}

func TestExpandRuns(t *testing.T) {
	const most = zstdBlockMax
	many := []any{someBytes(1000)}
	for range worthRuns / most {
		many = append(many, run{0, most}, run{0xcc, most}, someBytes(77), run{1, 1})
	}
	few, noRuns := []any{someBytes(10), run{0, most}}, []any{someBytes(most), someBytes(1)}
	for _, c := range []struct {
		name       string
		descriptor byte
		header     []byte
		blocks     []any
		expanded   bool
	}{
		{"window", 0, []byte{0x50}, many, true},
		{"a run at the end", 0, []byte{0x50}, append(slices.Clone(many), run{7, most}), true},
		{"content size of 4 bytes and a window", 0x80, []byte{0x50, 0, 0, 0, 0}, many, true},
		{"few runs", 0, []byte{0x50}, few, false},
		{"no runs", 0, []byte{0x50}, noRuns, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			frame, want := zstdFrame(c.descriptor, c.header, c.blocks...)
			if c.descriptor>>6 == 2 {
				n := len(want)
				copy(frame[6:], []byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)})
			}
			expanded, free := expandRuns(frame, len(want))
			if got := len(expanded) > len(frame); got != c.expanded {
				t.Errorf("%d bytes became %d", len(frame), len(expanded))
			}
			free()
			got := make([]byte, len(want))
			if err := unpackZstd(frame, got); err != nil || !bytes.Equal(got, want) {
				t.Errorf("unpacked otherwise: %v", err)
			}
			if err := unpackZstd(frame, got[:len(got)-1:len(got)-1]); err == nil {
				t.Error("a frame larger than its place was unpacked")
			}
		})
	}
}

// Runs between compressed blocks: the decoder sees the same content, with a checksum.
func TestExpandRunsCompressed(t *testing.T) {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderCRC(false), zstd.WithSingleSegment(false), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(8<<20))
	if err != nil {
		t.Fatal(err)
	}
	part := append(bytes.Repeat([]byte("what the linker leaves between its sections "), 5000), someBytes(100)...)
	blocks := e.EncodeAll(part, nil)
	blocks = blocks[zstdFrameHeader(blocks):]
	frame := []byte{0x28, 0xb5, 0x2f, 0xfd, 1 << 2, 13 << 3} // Content_Checksum_flag, a window of 8 MiB
	at := 0
	for { // the last block is not the last any more
		b, ok := zstdBlockAt(blocks, at)
		if !ok {
			t.Fatal("the encoder's frame is not understood")
		}
		if b.last {
			blocks[at] &^= 1
			break
		}
		at = b.end
	}
	var want []byte
	runs, content := zstdFrame(0, nil, run{0, zstdBlockMax}, run{0, 1000}, run{0xcc, zstdBlockMax})
	runs = runs[5:]
	runs[8] &^= 1
	for range 2 * worthRuns / len(content) {
		frame, want = append(append(frame, blocks...), runs...), append(append(want, part...), content...)
	}
	frame = append(frame, 1, 0, 0) // an empty raw block, the last
	checked, err := zstd.NewWriter(nil, zstd.WithEncoderCRC(true))
	if err != nil {
		t.Fatal(err)
	}
	other := checked.EncodeAll(want, nil)
	frame = append(frame, other[len(other)-4:]...)

	d, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if got, err := d.DecodeAll(frame, nil); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("the frame is not what it should be: %v", err)
	}
	expanded, free := expandRuns(frame, len(want))
	if len(expanded) <= len(frame) {
		t.Error("nothing was expanded")
	}
	free()
	got := make([]byte, len(want))
	if err := unpackZstd(frame, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("unpacked otherwise: %v", err)
	}
	frame[len(frame)-1] ^= 1
	if unpackZstd(frame, got) == nil {
		t.Error("a wrong checksum passes")
	}
}

// A frame that breaks off, or claims more than its content may have, is left to the decoder.
func TestExpandRunsBroken(t *testing.T) {
	frame, want := zstdFrame(0, []byte{0x50}, someBytes(5), run{0, zstdBlockMax}, run{0, zstdBlockMax}, run{2, 1}, someBytes(3))
	for n := range frame {
		if got, free := expandRuns(frame[:n], len(want)); !bytes.Equal(got, frame[:n]) {
			t.Errorf("%d of %d bytes became %d", n, len(frame), len(got))
			free()
		}
		if unpackZstd(frame[:n], make([]byte, len(want))) == nil {
			t.Errorf("%d of %d bytes were unpacked", n, len(frame))
		}
	}
	var bomb []any
	for range 64 {
		bomb = append(bomb, run{0, zstdBlockMax})
	}
	frame, _ = zstdFrame(0, []byte{0x50}, bomb...)
	if got, free := expandRuns(frame, 1<<20); len(got) != len(frame) {
		t.Errorf("%d bytes for a MiB of content", len(got))
		free()
	}
}
