package linux

import (
	"bytes"
	"compress/bzip2"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/pierrec/lz4/v4"
	xz "github.com/therootcompany/xz"
	"github.com/ulikunitz/xz/lzma"
)

// Compression is how the payload of a bzImage is packed.
type Compression uint8

// Kinds of compression (Linux arch/x86/boot/compressed/Makefile).
const (
	CompressionUnknown Compression = iota
	CompressionNone
	CompressionGzip
	CompressionZstd
	CompressionLZ4
	CompressionXZ
	CompressionLZMA
	CompressionBzip2
	CompressionLZO
)

// codecs lists each kind with its name and the bytes that it begins with.
var codecs = [...]struct{ name, magic string }{
	CompressionUnknown: {"unknown", "\xff no payload begins so"},
	CompressionNone:    {"none", "\x7fELF"},
	CompressionGzip:    {"gzip", "\x1f\x8b"},
	CompressionZstd:    {"zstd", "\x28\xb5\x2f\xfd"},
	CompressionLZ4:     {"lz4", "\x02\x21\x4c\x18"},
	CompressionXZ:      {"xz", "\xfd7zXZ\x00"},
	CompressionLZMA:    {"lzma", "\x5d\x00\x00"},
	CompressionBzip2:   {"bzip2", "BZh"},
	CompressionLZO:     {"lzo", "\x89LZO"},
}

// String returns the name that the kernel's configuration uses, in lower case.
func (c Compression) String() string {
	if int(c) < len(codecs) {
		return codecs[c].name
	}
	return fmt.Sprintf("compression %d", uint8(c))
}

// detectCompression looks at the first bytes of a payload or file.
func detectCompression(b []byte) Compression {
	for i, c := range codecs {
		if bytes.HasPrefix(b, []byte(c.magic)) {
			return Compression(i)
		}
	}
	return CompressionUnknown
}

const (
	lz4Magic     = 0x184c2102
	lz4BlockSize = 8 << 20 // uncompressed size of every legacy block but the last
	maxDict      = 1 << 28 // Linux 6.12 packs with 128 MiB
)

var errPayloadSize = errors.New("the payload's size is not the one it states")

// unpack expands src, a payload without the size that the kernel's Makefile
// appends, and fills dst exactly. Nothing behind dst's capacity is written.
func unpack(c Compression, src, dst []byte) error {
	switch c {
	case CompressionNone:
		if len(src) != len(dst) {
			return errPayloadSize
		}
		copy(dst, src)
		return nil
	case CompressionLZ4:
		return unpackLZ4(src, dst)
	case CompressionZstd:
		return unpackZstd(src, dst)
	}
	r, err := streamReader(c, bytes.NewReader(src))
	if err != nil {
		return err
	}
	if c != CompressionGzip {
		// These decoders keep a dictionary of up to 128 MiB on the Go heap;
		// give it back to the host before the guest starts.
		defer debug.FreeOSMemory()
	}
	return readExactly(r, dst)
}

// streamReader returns a reader for the formats without a faster way.
func streamReader(c Compression, r io.Reader) (io.Reader, error) {
	switch c {
	case CompressionGzip:
		return gzip.NewReader(r)
	case CompressionXZ:
		return xz.NewReader(r, maxDict)
	case CompressionLZMA:
		return lzma.ReaderConfig{DictCap: maxDict}.NewReader(r)
	case CompressionBzip2:
		return bzip2.NewReader(r), nil
	}
	return nil, fmt.Errorf("no decompressor for %s", c)
}

// readExactly fills dst from r and checks that r ends there.
func readExactly(r io.Reader, dst []byte) error {
	if _, err := io.ReadFull(r, dst); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			return errPayloadSize
		}
		return err
	}
	var one [1]byte
	if n, _ := io.ReadFull(r, one[:]); n != 0 {
		return errPayloadSize
	}
	return nil
}

// unpackLZ4 expands the legacy frame format (lz4 lz4_Frame_format.md, "Legacy
// frame"): independent blocks of 8 MiB, so they are expanded side by side.
func unpackLZ4(src, dst []byte) error {
	blocks, err := lz4Blocks(src)
	if err != nil {
		return err
	}
	if uint64(len(blocks)) != (uint64(len(dst))+lz4BlockSize-1)/lz4BlockSize {
		return errPayloadSize
	}
	errs := make([]error, len(blocks))
	var wg sync.WaitGroup
	next := make(chan int, len(blocks))
	for i := range blocks {
		next <- i
	}
	close(next)
	for range min(runtime.GOMAXPROCS(0), len(blocks)) {
		wg.Go(func() {
			for i := range next {
				out := dst[i*lz4BlockSize : min((i+1)*lz4BlockSize, len(dst))]
				n, err := lz4.UncompressBlock(blocks[i], out[:len(out):len(out)])
				if err == nil && n != len(out) {
					err = errPayloadSize
				}
				errs[i] = err
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// lz4Blocks splits a legacy frame: a magic number, then u32 size and data for
// each block.
func lz4Blocks(src []byte) ([][]byte, error) {
	le := binary.LittleEndian
	if len(src) < 4 || le.Uint32(src) != lz4Magic {
		return nil, errors.New("no lz4 legacy frame")
	}
	var blocks [][]byte
	for src = src[4:]; len(src) >= 4; {
		n := le.Uint32(src)
		if n == lz4Magic { // a further frame, as lz4 makes of a pipe
			src = src[4:]
			continue
		}
		if uint64(n) > uint64(len(src)-4) {
			return nil, io.ErrUnexpectedEOF
		}
		blocks = append(blocks, src[4:4+n])
		src = src[4+n:]
	}
	return blocks, nil
}
