package linux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/u-root/u-root/pkg/boot/bzimage"
	"golang.org/x/sys/unix"
)

// Format is the kind of a kernel file.
type Format uint8

// Kernel file formats.
const (
	// FormatBzImage is a bzImage (boot.rst), with or without an EFI stub.
	FormatBzImage Format = iota
	// FormatELF is an ELF64 kernel such as vmlinux.
	FormatELF
)

// String returns the format's usual name.
func (f Format) String() string {
	return [...]string{"bzImage", "ELF"}[f]
}

// ErrUKI is wrapped by the error of [Open] for a unified kernel image, which
// [OpenUKI] takes apart.
var ErrUKI = errors.New("is a unified kernel image")

// headSize is how much of a file is read to find out what it is: enough for
// the boot sector and the setup code with the version string.
const headSize = 32 << 10

// maxPayload bounds the size that a payload may claim to have, unpacked.
const maxPayload = 1 << 30

// Image is an opened kernel. Its headers are read and checked, its contents
// are read by [Load]. It may be loaded any number of times, for example on
// every reset of the machine.
type Image struct {
	name   string
	r      io.ReaderAt
	size   int64
	closer io.Closer
	format Format

	hdr   bzimage.LinuxHeader // bzImage: its setup header
	setup []byte              // bzImage: the file's bytes up to the end of setup_header
	elf   *elfImage           // ELF: its program headers

	release     string // bzImage: at once; ELF: by findBanner
	releaseOnce sync.Once
}

// Open opens the kernel image at path. The error is one sentence that names
// the path.
func Open(path string) (*Image, error) {
	f, size, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	img, err := New(path, f, size)
	if err != nil {
		f.Close()
		return nil, err
	}
	img.closer = f
	return img, nil
}

// openRegular opens a file that must be a regular one, and does not wait for
// the writer of a FIFO to find out.
func openRegular(path string) (*os.File, int64, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("cannot open the kernel: %w", err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file, so it cannot be a kernel", path)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, st.Size(), nil
}

// New reads the kernel image r of size bytes; name is for error sentences.
func New(name string, r io.ReaderAt, size int64) (*Image, error) {
	img := &Image{name: name, r: r, size: size}
	head := make([]byte, min(size, headSize))
	if _, err := r.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, img.errorf("cannot be read: %w", err)
	}
	var err error
	switch {
	case len(head) >= hdrStructEnd && string(head[hdrMagic:hdrMagic+4]) == "HdrS" &&
		binary.LittleEndian.Uint16(head[hdrBootFlag:]) == bootFlag:
		err = img.parseBzImage(head)
	case bytes.HasPrefix(head, []byte(codecs[CompressionNone].magic)):
		img.format = FormatELF
		img.elf, err = parseELF(r, size)
	default:
		err = img.explain(head)
	}
	if err != nil {
		return nil, img.errorf("%w", err)
	}
	return img, nil
}

// errorf makes an error sentence about the image.
func (img *Image) errorf(format string, args ...any) error {
	return fmt.Errorf(img.quotedName()+" "+format, args...)
}

// quotedName is the name, safe inside a format.
func (img *Image) quotedName() string { return strings.ReplaceAll(img.name, "%", "%%") }

// explain says why a file that begins with head is no kernel for us.
func (img *Image) explain(head []byte) error {
	if len(head) < sectorSize {
		return errors.New("is not a kernel: it is too short")
	}
	if string(head[:2]) == "MZ" {
		switch {
		case string(head[4:8]) == "zimg":
			return errors.New("is a compressed EFI kernel (zboot) of another architecture")
		case string(head[0x38:0x3c]) == "ARM\x64":
			return errors.New("is an arm64 kernel; an x86-64 kernel is needed")
		case isUKI(img.r):
			return ErrUKI
		}
		return errors.New("is an EFI program without a Linux kernel in it")
	}
	if c := detectCompression(head); c != CompressionUnknown {
		return fmt.Errorf("is not a kernel but a file compressed with %s; unpack it first", c)
	}
	return errors.New("is not a kernel: it is neither a bzImage nor an ELF file")
}

// parseBzImage reads the setup header.
func (img *Image) parseBzImage(head []byte) error {
	img.format = FormatBzImage
	if err := img.hdr.UnmarshalBinary(head[:hdrStructEnd]); err != nil {
		return fmt.Errorf("has a broken setup header: %w", err)
	}
	h := &img.hdr
	end := hdrMagic + int(head[hdrJump+1]) // boot.rst: the header ends at 0x202 + the byte at 0x201
	if end < hdrKernelAlign || end > 0x290 || end > len(head) {
		return errors.New("has a broken setup header: its length makes no sense")
	}
	img.setup = head[:end]
	switch {
	case h.Loadflags&loadFlagLoadedHigh == 0:
		return errors.New("is a zImage, a kernel of the 1990s; a bzImage is needed")
	case h.Protocolversion < protocol64:
		return fmt.Errorf("speaks boot protocol %d.%02d; 2.12 (Linux 3.8) or later is needed", h.Protocolversion>>8, h.Protocolversion&0xff)
	case h.XLoadFlags&xlfKernel64 == 0:
		return errors.New("is a 32-bit kernel; an x86-64 kernel is needed")
	}
	if need := img.setupSize() + int64(h.Syssize)*16; need > img.size+16 { // syssize is rounded up
		return fmt.Errorf("is truncated: its header promises %d bytes, the file has %d", need, img.size)
	}
	if err := img.checkPayload(); err != nil {
		return err
	}
	if off := int(h.Kveraddr) + hdrJump; h.Kveraddr != 0 && off < len(head) && int64(off) < img.setupSize() {
		img.release = firstWord(head[off:min(off+256, len(head))])
	}
	return nil
}

// checkPayload checks that payload_offset and payload_length lie in the file.
func (img *Image) checkPayload() error {
	off, n := int64(img.hdr.PayloadOffset), int64(img.hdr.PayloadSize)
	if n < 16 || off == 0 || img.setupSize()+off+n > img.size {
		return fmt.Errorf("is truncated: its payload should end at byte %d, the file has %d", img.setupSize()+off+n, img.size)
	}
	return nil
}

// setupSize is the length of the real-mode part: boot sector and setup_sects.
func (img *Image) setupSize() int64 {
	n := int64(img.hdr.SetupSects)
	if n == 0 {
		n = 4 // boot.rst: "if the setup_sects field contains 0, the real value is 4"
	}
	return (n + 1) * sectorSize
}

// payloadReader is the packed kernel inside a bzImage.
func (img *Image) payloadReader() *io.SectionReader {
	return io.NewSectionReader(img.r, img.setupSize()+int64(img.hdr.PayloadOffset), int64(img.hdr.PayloadSize))
}

// Name is the path or name that the image was opened by.
func (img *Image) Name() string { return img.name }

// Format is the kind of file.
func (img *Image) Format() Format { return img.format }

// Compression is how the payload of a bzImage is packed; CompressionNone for ELF.
func (img *Image) Compression() Compression {
	if img.format == FormatELF {
		return CompressionNone
	}
	var b [8]byte
	if _, err := img.payloadReader().ReadAt(b[:], 0); err != nil {
		return CompressionUnknown
	}
	return detectCompression(b[:])
}

// CommandLineMax is the longest command line in bytes, without the NUL, that
// the kernel takes (cmdline_size).
func (img *Image) CommandLineMax() int {
	if n := img.hdr.CmdLineSize; img.format == FormatBzImage && n != 0 {
		return int(min(n, 1<<16))
	}
	return defaultCmdLineSize
}

// Release is the kernel's release as uname -r shows it in the guest, read from
// the image itself: the kernel_version string of a bzImage, the "Linux version"
// banner of an ELF file, which is searched through at the first call. It is
// empty if the image does not say.
func (img *Image) Release() string {
	img.releaseOnce.Do(func() {
		if img.format == FormatELF {
			img.release = img.findBanner()
		}
	})
	return img.release
}

var banner = []byte("Linux version ")

// findBanner searches the loaded segments for the kernel's banner.
func (img *Image) findBanner() string {
	const overlap = 256 // the banner up to the end of the release fits
	buf := make([]byte, 1<<20)
	for _, s := range img.elf.loads {
		for off := uint64(0); off < s.filesz; off += uint64(len(buf) - overlap) {
			b := buf[:min(uint64(len(buf)), s.filesz-off)]
			if n, err := img.r.ReadAt(b, int64(s.off+off)); err != nil && n < len(b) {
				return ""
			}
			if rel := releaseAfterBanner(b); rel != "" {
				return rel
			}
		}
	}
	return ""
}

// releaseAfterBanner returns the word behind a banner in b that starts with a digit.
func releaseAfterBanner(b []byte) string {
	for {
		i := bytes.Index(b, banner)
		if i < 0 {
			return ""
		}
		b = b[i+len(banner):]
		if len(b) > 0 && b[0] >= '0' && b[0] <= '9' {
			return firstWord(b[:min(len(b), 128)])
		}
	}
}

// firstWord is b up to the first space or NUL, if that is printable ASCII.
func firstWord(b []byte) string {
	i := bytes.IndexAny(b, " \x00")
	if i < 0 || bytes.ContainsFunc(b[:i], func(r rune) bool { return r <= ' ' || r > '~' || r == '/' }) {
		return ""
	}
	return string(b[:i])
}

// Close closes the file, if [Open] opened one.
func (img *Image) Close() error {
	if img.closer == nil {
		return nil
	}
	return img.closer.Close()
}
