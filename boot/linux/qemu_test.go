package linux

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
	"github.com/gvmspawn/gvmspawn/vmm/layout"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// kernelVariable names another kernel than Debian bookworm's to try.
const kernelVariable = "GVMSPAWN_TEST_KERNEL"

// realKernel is the path of a stock kernel.
func realKernel(t testing.TB) string {
	if path := os.Getenv(kernelVariable); path != "" {
		return path
	}
	return guesttest.KernelAsset(t, "kernel-bookworm").Path
}

// A stock kernel runs from the state that Load leaves to its init, on every
// way in: QEMU's RAM is filled with ours, and a firmware of a few instructions
// loads the registers.
func TestBootRealKernel(t *testing.T) {
	if testing.Short() {
		t.Skip("boots machines")
	}
	path := realKernel(t)
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("no qemu-system-x86_64")
	}
	img, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	for _, tt := range []struct {
		name  string
		entry Entry
		kaslr bool
	}{{"64-bit", Entry64, false}, {"KASLR", Entry64, true}, {"PVH", EntryPVH, false}, {"decompressor", EntryDecompressor, false}} {
		t.Run(tt.name, func(t *testing.T) {
			m := newMemory(t, 512*layout.MiB)
			arch := helloArchive(t)
			regs, err := Load(Boot{Memory: m, Image: img, Entry: tt.entry, KASLR: tt.kaslr,
				CommandLine: "console=ttyS0 panic=-1 reboot=t",
				Initrds:     []Initrd{{Name: "test", Size: int64(len(arch)), Data: bytes.NewReader(arch)}}})
			if err != nil {
				t.Fatal(err)
			}
			out := runQEMU(t, m.Regions()[0].Bytes(), regs)
			if !strings.Contains(out, "hello from init") {
				t.Errorf("init was not reached:\n%s", out)
			}
			if tt.kaslr && !strings.Contains(out, "Kernel Offset: 0x") {
				t.Errorf("the kernel does not know of its offset:\n%s", out)
			}
		})
	}
}

// helloArchive is an initramfs whose init writes a line to the kernel log and
// to its standard output and then exits, on which the kernel panics.
func helloArchive(t *testing.T) []byte {
	code := []byte{
		0xb8, 1, 0, 0, 0, // mov eax, 1 (write)
		0xbf, 1, 0, 0, 0, // mov edi, 1
		0x48, 0x8d, 0x35, 0x13, 0, 0, 0, // lea rsi, [rip+0x13]
		0xba, 16, 0, 0, 0, // mov edx, 16
		0x0f, 0x05, // syscall
		0xb8, 60, 0, 0, 0, // mov eax, 60 (exit)
		0xbf, 0, 0, 0, 0, // mov edi, 0
		0x0f, 0x05, // syscall
	}
	code = append(code, "hello from init\n"...)
	code[13] = byte(36 - 17)
	elf := make([]byte, 120, 256)
	copy(elf, "\x7fELF\x02\x01\x01")
	le := binary.LittleEndian
	le.PutUint16(elf[16:], 2)
	le.PutUint16(elf[18:], 62)
	le.PutUint32(elf[20:], 1)
	le.PutUint64(elf[24:], 0x400078)
	le.PutUint64(elf[32:], 64)
	le.PutUint16(elf[52:], 64)
	le.PutUint16(elf[54:], 56)
	le.PutUint16(elf[56:], 1)
	le.PutUint32(elf[64:], 1)
	le.PutUint32(elf[68:], 5)
	le.PutUint64(elf[80:], 0x400000)
	le.PutUint64(elf[88:], 0x400000)
	le.PutUint64(elf[96:], uint64(120+len(code)))
	le.PutUint64(elf[104:], uint64(120+len(code)))
	le.PutUint64(elf[112:], 0x1000)
	elf = append(elf, code...)
	var b bytes.Buffer
	w := cpio.Newc.Writer(&b)
	if err := cpio.WriteRecords(w, []cpio.Record{cpio.Directory("dev", 0o755),
		cpio.CharDev("dev/console", 0o600, 5, 1), cpio.StaticFile("init", string(elf), 0o755)}); err != nil {
		t.Fatal(err)
	}
	if err := cpio.WriteTrailer(w); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// runQEMU starts a machine from ram and regs and returns its console.
func runQEMU(t *testing.T, ram []byte, regs vcpu.Registers) string {
	dir := t.TempDir()
	ramFile, bios := filepath.Join(dir, "ram"), filepath.Join(dir, "bios")
	writeSparse(t, ramFile, ram)
	if err := os.WriteFile(bios, stubFirmware(regs), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg", "-m", fmt.Sprint(len(ram)>>20),
		"-object", fmt.Sprintf("memory-backend-file,id=ram,size=%d,mem-path=%s,share=on", len(ram), ramFile),
		"-machine", "pc,memory-backend=ram,acpi=off", "-bios", bios, "-nodefaults", "-no-reboot", "-nographic", "-serial", "stdio",
	).CombinedOutput()
	if err != nil {
		t.Errorf("qemu: %v", err)
	}
	return string(out)
}

func writeSparse(t *testing.T, path string, b []byte) {
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(len(b))); err != nil {
		t.Fatal(err)
	}
	zero := make([]byte, 1<<16)
	for i := 0; i < len(b); i += len(zero) {
		if p := b[i : i+len(zero)]; !bytes.Equal(p, zero) {
			if _, err := f.WriteAt(p, int64(i)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// stubFirmware goes from the reset vector to the state in r.
func stubFirmware(r vcpu.Registers) []byte {
	rom := make([]byte, 64<<10)
	le := binary.LittleEndian
	copy(rom[0xfff0:], []byte{0xe9, 0x0d, 0xff}) // jmp 0xff00
	c := append(rom[:0xff00], 0xfa)              // cli
	c = append(c, 0x66, 0x2e, 0x0f, 0x01, 0x16, 0xe0, 0xff)
	mov := func(v uint64) { c = le.AppendUint32(append(c, 0x66, 0xb8), uint32(v)) } // mov eax, v
	mov(r.CR4)
	c = append(c, 0x0f, 0x22, 0xe0) // mov cr4, eax
	mov(r.CR3)
	c = append(c, 0x0f, 0x22, 0xd8) // mov cr3, eax
	mov(r.EFER)
	c = append(c, 0x66, 0xb9, 0x80, 0, 0, 0xc0, 0x66, 0x31, 0xd2, 0x0f, 0x30) // mov ecx, EFER; xor edx, edx; wrmsr
	mov(r.CR0)
	c = append(c, 0x0f, 0x22, 0xc0)                               // mov cr0, eax
	c = append(c, 0x66, 0xea, 0x60, 0xff, 0xff, 0xff, bootCS, 0)  // jmp far
	c = append(rom[:0xff60], 0xb8, bootDS, 0, 0, 0)               // mov eax, bootDS
	c = append(c, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0)             // mov ds, eax; es; ss
	c = le.AppendUint32(append(c, 0xbe), uint32(r.GPR[vcpu.RSI])) // mov esi
	c = le.AppendUint32(append(c, 0xbb), uint32(r.GPR[vcpu.RBX])) // mov ebx
	c = le.AppendUint32(append(c, 0xbc), uint32(r.GPR[vcpu.RSP])) // mov esp
	c = le.AppendUint32(append(c, 0xb8), uint32(r.RIP))           // mov eax
	_ = append(c, 0xff, 0xe0)                                     // jmp rax
	le.PutUint16(rom[0xffe0:], r.GDT.Limit)
	le.PutUint32(rom[0xffe2:], uint32(r.GDT.Base))
	return rom
}
