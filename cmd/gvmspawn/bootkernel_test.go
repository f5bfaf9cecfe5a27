package main

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// packers are the programs that make each kind of payload, quickly rather than
// well. The kernel's build appends the size, but for gzip, which has it anyway.
var packers = map[string]struct {
	program string
	args    []string
}{
	"gzip":  {"gzip", []string{"-1"}},
	"zstd":  {"zstd", []string{"-q", "-1"}},
	"lz4":   {"lz4", []string{"-q", "-l"}},
	"xz":    {"xz", []string{"-0", "--check=crc32"}},
	"lzma":  {"xz", []string{"-0", "--format=lzma"}},
	"bzip2": {"bzip2", []string{"-1"}},
	"lzo":   {"lzop", []string{"-1"}},
}

// repacked is a stock kernel taken apart, to be put together in other ways.
type repacked struct {
	t       *testing.T
	image   []byte // the bzImage
	vmlinux []byte // its payload, unpacked
}

// Offsets in the setup header (Linux Documentation/arch/x86/boot.rst).
const (
	setupSectsAt    = 0x1f1
	syssizeAt       = 0x1f4
	payloadOffsetAt = 0x248
	payloadLengthAt = 0x24c
)

// unpackKernel takes a bzImage with a zstd payload apart, as trixie's is.
func unpackKernel(t *testing.T, path string) *repacked {
	t.Helper()
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r := &repacked{t: t, image: image}
	at := r.payload()
	packed := image[at : at+int(binary.LittleEndian.Uint32(image[payloadLengthAt:]))]
	size := binary.LittleEndian.Uint32(packed[len(packed)-4:])
	d, err := zstd.NewReader(bytes.NewReader(packed[:len(packed)-4]))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	r.vmlinux = make([]byte, size)
	if _, err := io.ReadFull(d, r.vmlinux); err != nil {
		t.Fatal(err)
	}
	return r
}

// payload is where in the image the payload begins.
func (r *repacked) payload() int {
	return (int(r.image[setupSectsAt])+1)*512 + int(binary.LittleEndian.Uint32(r.image[payloadOffsetAt:]))
}

// write puts a file next to the others and returns its name.
func (r *repacked) write(dir, name string, data []byte) string {
	path := filepath.Join(dir, name)
	writeFile(r.t, path, data, 0o644)
	return path
}

// bzImage is the kernel with its payload packed anew. Its own decompressor is
// still zstd's, so it boots only where the VMM unpacks it.
func (r *repacked) bzImage(dir, compression string) string {
	r.t.Helper()
	p := packers[compression]
	cmd := exec.Command(guesttest.Tool(r.t, p.program), append(p.args, "-c")...)
	cmd.Stdin = bytes.NewReader(r.vmlinux)
	packed, err := cmd.Output()
	if err != nil {
		r.t.Fatalf("%s: %v", p.program, err)
	}
	if compression != "gzip" {
		packed = binary.LittleEndian.AppendUint32(packed, uint32(len(r.vmlinux)))
	}
	image := append(bytes.Clone(r.image[:r.payload()]), packed...)
	for len(image)%16 != 0 {
		image = append(image, 0)
	}
	setup := (int(image[setupSectsAt]) + 1) * 512
	binary.LittleEndian.PutUint32(image[payloadLengthAt:], uint32(len(packed)))
	binary.LittleEndian.PutUint32(image[syssizeAt:], uint32(len(image)-setup)/16)
	return r.write(dir, compression, image)
}

// elf is the unpacked kernel. With pvhOnly its 64-bit entry point is no physical
// address, so that the Xen note's is the only one.
func (r *repacked) elf(dir string, pvhOnly bool) string {
	r.t.Helper()
	if _, err := elf.NewFile(bytes.NewReader(r.vmlinux)); err != nil {
		r.t.Fatal(err)
	}
	if !pvhOnly {
		return r.write(dir, "vmlinux", r.vmlinux)
	}
	const entryAt = 24 // e_entry of Elf64_Ehdr
	image := bytes.Clone(r.vmlinux)
	binary.LittleEndian.PutUint64(image[entryAt:], 0xffffffff81000000)
	return r.write(dir, "pvh", image)
}

// kernelFormats are the ways in which a kernel comes, in the order of kernelCases.
// CI unpacks only what is quickly packed; each decompressor has its own tests in
// boot/linux.
func kernelFormats() []string {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		return []string{"vmlinux", "pvh", "gzip"}
	}
	return []string{"vmlinux", "pvh", "gzip", "zstd", "lz4", "xz", "lzma", "bzip2"}
}

// kernels makes the formats of the trixie kernel, which needs no modules, in dir.
func kernels(t *testing.T, dir string, formats []string) map[string]string {
	t.Helper()
	r := unpackKernel(t, guesttest.KernelAsset(t, "kernel-trixie").Path)
	made := map[string]string{}
	for _, f := range formats {
		switch f {
		case "vmlinux", "pvh":
			made[f] = r.elf(dir, f == "pvh")
		default:
			made[f] = r.bzImage(dir, f)
		}
	}
	return made
}

// TestBootKernelFormats boots a stock kernel in every format on the software CPU.
func TestBootKernelFormats(t *testing.T) {
	kernel := softBoot(t, "kernel-trixie")
	dir := t.TempDir()
	made := kernels(t, dir, append(kernelFormats(), "lzo"))
	for _, format := range kernelFormats() {
		t.Run(format, func(t *testing.T) {
			k := kernel
			k.Path = made[format]
			m := newMachine(t, t.TempDir(), k, "-D", guesttest.BusyboxTree(t, `echo "HELLO from $(uname -r)"; poweroff -f`), "--vsock=no", "quiet")
			m.start()
			if s := m.status(); s != 0 {
				t.Errorf("status %d", s)
			}
			m.waitFor("HELLO from " + kernel.Version)
		})
	}
	t.Run("lzo", func(t *testing.T) {
		r := execute(t, dir, "-q", "--kvm=no", "--register=no", "--tpm=no", "--vsock=no", "-D", guesttest.BusyboxTree(t, ""), "--linux="+made["lzo"])
		if want := "lzo, which is not supported"; r.status != 1 || !bytes.Contains([]byte(r.stderr), []byte(want)) {
			t.Errorf("status %d, %q; want 1, %q", r.status, r.stderr, want)
		}
	})
}

// TestBootKernelFormatsOnKVM does the same on genuine KVM.
func TestBootKernelFormatsOnKVM(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("boots many machines in the testbed: set GVMSPAWN_LONG=1")
	}
	var cases []bootCase
	made := kernels(t, t.TempDir(), append(kernelFormats(), "lzo"))
	for i, format := range kernelFormats() {
		for _, cpus := range []int{1, 4} {
			if cpus > 1 && i > 2 { // how the payload was packed is nothing to the other CPUs
				continue
			}
			cases = append(cases, bootCase{name: fmt.Sprintf("%s, %d CPUs", format, cpus), kernel: "kernel-trixie", path: made[format],
				args: fmt.Sprintf("--cpus=%d do=poweroff quiet", cpus), want: fmt.Sprintf("HELLO from 6[.]12[.].* with %d CPU", cpus), after: "true"})
		}
	}
	cases = append(cases, bootCase{name: "lzo", kernel: "kernel-trixie", path: made["lzo"], status: 1, want: "lzo, which is not supported", after: "true"})
	runOnKVM(t, cases)
}

// TestBootManyCPUsOnKVM: a guest has 64 CPUs on a host with one. Linux 6.5 and later
// start all at once, and each spins until the first has come to it: 16 take 8.6 s of
// the testbed's time that way and 5.1 s with cpuhp.parallel=0, and 64 more than the
// host's patience, because each PAUSE costs QEMU much real time. So here they start one
// after the other, as older ones do.
func TestBootManyCPUsOnKVM(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("boots machines in the testbed: set GVMSPAWN_LONG=1")
	}
	var cases []bootCase
	for kernel, args := range map[string]string{"kernel-bookworm": "", "kernel-trixie": "cpuhp.parallel=0"} {
		cases = append(cases, bootCase{name: kernel, kernel: kernel, args: "--cpus=64 do=topology quiet " + args,
			want: "HELLO from .* with 64 CPU", after: `grep -q "64 cores in 1 package" /tmp/out`})
	}
	runOnKVM(t, cases)
}
