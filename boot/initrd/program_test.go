package initrd

import (
	"debug/elf"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/arch/x86/x86asm"
	"golang.org/x/sys/unix"
)

// execProgram runs a program on this machine and returns its output and status.
func execProgram(t *testing.T, p *Program, args ...string) (string, int) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, p.ELF(), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	cmd.Env = []string{"ONE=1", "TWO=2"}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

func TestProgramWrites(t *testing.T) {
	p := NewProgram()
	p.Syscall(unix.SYS_WRITE, Int(1), p.Bytes("hello\n"), Int(6))
	p.Exit(7)
	if out, code := execProgram(t, p); out != "hello\n" || code != 7 {
		t.Errorf("%q, %d", out, code)
	}
}

func TestProgramReports(t *testing.T) {
	p := NewProgram()
	p.Syscall(unix.SYS_OPEN, p.String("/nowhere/at/all"), Int(0))
	p.OnError(func() { p.Report("open") }, unix.EINVAL)
	p.Syscall(unix.SYS_CLOSE, Int(-1))
	p.OnError(func() { p.Report("ignored") }, unix.EINVAL, unix.EBADF)
	p.Syscall(unix.SYS_FCNTL, Int(0), Int(12345), Int(0))
	p.Then(func() { p.Exit(3) }, func() { p.Report("fcntl") })
	p.emit(0x48, 0xc7, 0xc0) // mov rax, -4095: the largest error number
	p.imm32(0xfffff001)
	p.OnError(func() { p.Report("last") })
	if out, code := execProgram(t, p); out != "open: errno 2\nfcntl: errno 22\nlast: errno 4095\n" || code != 0 {
		t.Errorf("%q, %d", out, code)
	}
}

func TestProgramExecPassesArgumentsAndEnvironment(t *testing.T) {
	p := NewProgram()
	p.Exec("/nowhere")
	p.OnError(func() { p.Report("exec") })
	p.Exec("/bin/sh")
	out, code := execProgram(t, p, "-c", `echo "$0|$1|$2|$ONE|$TWO|$#"; exit 5`, "a", "b c", "")
	if want := "exec: errno 2\na|b c||1|2|2\n"; out != want || code != 5 {
		t.Errorf("%q, %d, want %q", out, code, want)
	}
}

func TestProgramRetry(t *testing.T) {
	p := NewProgram()
	p.Retry(3, unix.Timespec{Nsec: 1000}, func(func()) { p.Syscall(unix.SYS_WRITE, Int(1), p.Bytes("x"), Int(1)) })
	p.Retry(3, unix.Timespec{}, func(done func()) {
		p.Syscall(unix.SYS_WRITE, Int(1), p.Bytes("y"), Int(1))
		p.Then(done, nil)
	})
	if out, _ := execProgram(t, p); out != "xxxy" {
		t.Errorf("%q", out)
	}
}

// The file is what debug/elf takes for a static executable without writable code.
func TestProgramELF(t *testing.T) {
	f, err := elf.NewFile(strings.NewReader(string(testProgram())))
	if err != nil {
		t.Fatal(err)
	}
	if f.Type != elf.ET_EXEC || f.Machine != elf.EM_X86_64 || len(f.Progs) != 2 {
		t.Fatalf("%+v", f.FileHeader)
	}
	if p := f.Progs[0]; p.Type != elf.PT_LOAD || p.Flags != elf.PF_R|elf.PF_X || p.Vaddr%p.Align != p.Off%p.Align {
		t.Errorf("%+v", p.ProgHeader)
	}
	if p := f.Progs[1]; p.Type != elf.PT_GNU_STACK || p.Flags != elf.PF_R|elf.PF_W {
		t.Errorf("%+v", p.ProgHeader)
	}
}

// Encodings, against x86asm.
func TestEncoding(t *testing.T) {
	for _, tt := range []struct {
		emit func(*asm)
		want string
	}{
		{func(a *asm) { a.movImm(rax, 5) }, "mov eax, 0x5"},
		{func(a *asm) { a.movImm(r10, 5) }, "mov r10d, 0x5"},
		{func(a *asm) { a.movImm(rdi, 0) }, "xor edi, edi"},
		{func(a *asm) { a.movImm(r9, 0) }, "xor r9d, r9d"},
		{func(a *asm) { a.movImm(rdi, -100) }, "mov rdi, -0x64"},
		{func(a *asm) { a.movImm(r8, -1) }, "mov r8, -0x1"},
		{func(a *asm) { a.mov(r12, rsp) }, "mov r12, rsp"},
		{func(a *asm) { a.mov(rdi, r13) }, "mov rdi, r13"},
		{func(a *asm) { a.testRAX() }, "test rax, rax"},
		{func(a *asm) { a.cmpRAX(-17) }, "cmp rax, -0x11"},
		{func(a *asm) { a.dec(rbp) }, "dec rbp"},
		{func(a *asm) { a.dec(r15) }, "dec r15"},
		{func(a *asm) { a.syscall() }, "syscall"},
		{func(a *asm) { a.ret() }, "ret"},
	} {
		var a asm
		tt.emit(&a)
		in, err := x86asm.Decode(a.code, 64)
		if err != nil || in.Len != len(a.code) || x86asm.IntelSyntax(in, 0, nil) != tt.want {
			t.Errorf("% x is %q, %v, want %q", a.code, x86asm.IntelSyntax(in, 0, nil), err, tt.want)
		}
	}
}
