package linux

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/klauspost/compress/zstd"
)

// unpackZstd decodes into dst without a window of its own: the output is the history.
func unpackZstd(src, dst []byte) error {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxWindow(maxDict))
	if err != nil {
		return err
	}
	defer d.Close()
	src, free := expandRuns(src, len(dst))
	defer free()
	out, err := d.DecodeAll(src, dst[:0])
	switch {
	case err != nil:
		return err
	case len(out) != len(dst) || len(dst) > 0 && &out[0] != &dst[0]:
		return errPayloadSize
	}
	return nil
}

// Zstandard's frame format (RFC 8878 §3.1.1).
const (
	zstdMagic         = 0xfd2fb528
	zstdSingleSegment = 1 << 5 // of the Frame_Header_Descriptor
	zstdDictionaryID  = 3
	zstdHeaderSize    = 3 // of a block
	zstdBlockMax      = 128 << 10

	zstdRaw        = 0
	zstdRLE        = 1
	zstdCompressed = 2
)

// worthRuns is how many bytes of runs make expandRuns worth its copy.
const worthRuns = 1 << 20

// expandRuns returns a frame with the same content in which blocks of one repeated
// byte (RLE_Block) are blocks of bytes (Raw_Block). The decoder copies the latter,
// but counts out the former byte by byte, and a kernel has many MiB of them: what
// the linker leaves between its sections. limit is the size of the content. free
// releases the new frame. A frame that is not understood is returned as it is.
func expandRuns(src []byte, limit int) (frame []byte, free func()) {
	free = func() {}
	head := zstdFrameHeader(src)
	if head < 0 {
		return src, free
	}
	runs, end := 0, head
	for last := false; !last; {
		b, ok := zstdBlockAt(src, end)
		if !ok {
			return src, free
		}
		if b.kind == zstdRLE {
			runs += b.size
		}
		if runs > limit {
			return src, free
		}
		end, last = b.end, b.last
	}
	if runs < worthRuns {
		return src, free
	}
	// Anonymous memory: a run of zeros costs nothing but the look at it.
	buf, err := unix.Mmap(-1, 0, len(src)+runs, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return src, free
	}
	_ = unix.Madvise(buf, unix.MADV_HUGEPAGE) // a hint
	n := copy(buf, src[:head])
	for at := head; at < end; {
		b, _ := zstdBlockAt(src, at)
		if b.kind == zstdRLE {
			header := uint32(b.size)<<3 | zstdRaw<<1
			if b.last {
				header |= 1
			}
			buf[n], buf[n+1], buf[n+2] = byte(header), byte(header>>8), byte(header>>16)
			n += zstdHeaderSize
			if v := src[b.end-1]; v != 0 {
				fill(buf[n:n+b.size], v)
			}
			n += b.size
		} else {
			n += copy(buf[n:], src[at:b.end])
		}
		at = b.end
	}
	n += copy(buf[n:], src[end:]) // the checksum
	return buf[:n], func() { _ = unix.Munmap(buf) }
}

// zstdFrameHeader is the length of the header at the start of b, or -1.
func zstdFrameHeader(b []byte) int {
	if len(b) < 6 || binary.LittleEndian.Uint32(b) != zstdMagic {
		return -1
	}
	d := b[4]
	n := 5 + [...]int{0, 1, 2, 4}[d&zstdDictionaryID] + [...]int{0, 2, 4, 8}[d>>6]
	if d&zstdSingleSegment == 0 {
		n++ // Window_Descriptor
	} else if d>>6 == 0 {
		n++ // Frame_Content_Size of one byte
	}
	if n > len(b) {
		return -1
	}
	return n
}

// zstdBlock is a block of a frame: its size is that of its content if it is raw or a run.
type zstdBlock struct {
	kind, size int
	end        int // offset behind it
	last       bool
}

// zstdBlockAt reads the header of the block at offset at.
func zstdBlockAt(b []byte, at int) (zstdBlock, bool) {
	if len(b)-at < zstdHeaderSize {
		return zstdBlock{}, false
	}
	h := int(b[at]) | int(b[at+1])<<8 | int(b[at+2])<<16
	r := zstdBlock{kind: h >> 1 & 3, size: h >> 3, last: h&1 != 0}
	length := r.size
	if r.kind == zstdRLE {
		length = 1
	}
	r.end = at + zstdHeaderSize + length
	return r, r.kind <= zstdCompressed && r.size <= zstdBlockMax && r.end <= len(b)
}

// fill sets all bytes of b to v.
func fill(b []byte, v byte) {
	if len(b) == 0 {
		return
	}
	b[0] = v
	for n := 1; n < len(b); n *= 2 {
		copy(b[n:], b[:n])
	}
}
