package initrd

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"
)

// Arg is an argument of a system call.
type Arg struct {
	imm  int64
	data label
	reg  reg
	kind argKind
}

type argKind uint8

const (
	argImm argKind = iota
	argData
	argReg
)

// Int is a number, −2³¹ ≤ v < 2³¹.
func Int(v int) Arg { return Arg{imm: int64(v)} }

// Registers that a Program keeps over its whole run. The kernel preserves all
// but RAX, RCX and R11 over a system call (psABI §A.2.1).
const (
	regStack   = r12 // the stack pointer at the start: argc, argv, NULL, envp, NULL
	regLog     = r13 // descriptor that messages go to
	regError   = rbx // result of the call that failed
	regCounter = rbp // of a loop
	regKeep    = r15 // what Keep kept
	regOther   = r14 // what KeepOther kept
)

// syscallRegs are the registers of the arguments, in their order.
var syscallRegs = [...]reg{rdi, rsi, rdx, r10, r8, r9}

// Program assembles a static x86-64 Linux program from system calls. Its
// methods append code in the order of their calls; [Program.ELF] ends it.
type Program struct {
	asm
	data    map[string]label
	strings []string // in the order of their labels' making
	report  label
}

// NewProgram returns a program that has yet done nothing but note where its
// arguments are.
func NewProgram() *Program {
	p := &Program{data: map[string]label{}}
	p.report = p.newLabel()
	p.mov(regStack, rsp)
	p.movImm(regLog, 2)
	return p
}

// Bytes is constant data of the program; equal data is stored once.
func (p *Program) Bytes(b string) Arg {
	l, ok := p.data[b]
	if !ok {
		l = p.newLabel()
		p.data[b] = l
		p.strings = append(p.strings, b)
	}
	return Arg{kind: argData, data: l}
}

// String is a NUL-terminated string. s contains no NUL.
func (p *Program) String(s string) Arg { return p.Bytes(s + "\x00") }

// Kept is what [Program.Keep] kept.
func (p *Program) Kept() Arg { return Arg{kind: argReg, reg: regKeep} }

// Keep keeps the result of the last call for [Program.Kept].
func (p *Program) Keep() { p.mov(regKeep, rax) }

// OtherKept is what [Program.KeepOther] kept.
func (p *Program) OtherKept() Arg { return Arg{kind: argReg, reg: regOther} }

// KeepOther keeps the result of the last call for [Program.OtherKept], until
// the next Report.
func (p *Program) KeepOther() { p.mov(regOther, rax) }

// Unless appends bad, which runs if the last call's result is not want.
func (p *Program) Unless(want int, bad func()) {
	skip := p.newLabel()
	p.cmpRAX(int32(want))
	p.jcc(condE, skip)
	p.movImm(regError, -int64(unix.EIO))
	bad()
	p.bind(skip)
}

// Syscall makes the system call nr with up to six arguments and leaves its
// result for what comes next.
func (p *Program) Syscall(nr int, args ...Arg) {
	for i, a := range args {
		switch a.kind {
		case argImm:
			p.movImm(syscallRegs[i], a.imm)
		case argData:
			p.lea(syscallRegs[i], a.data)
		case argReg:
			p.mov(syscallRegs[i], a.reg)
		}
	}
	p.movImm(rax, int64(nr))
	p.syscall()
}

// Then appends two branches: ok runs if the last call succeeded, bad if it
// failed. Either may be nil.
func (p *Program) Then(ok, bad func()) {
	failed, end := p.newLabel(), p.newLabel()
	p.testRAX()
	p.jcc(condS, failed)
	if ok != nil {
		ok()
	}
	p.jmp(end)
	p.bind(failed)
	p.mov(regError, rax)
	if bad != nil {
		bad()
	}
	p.bind(end)
}

// OnError appends bad, which runs if the last call failed, except with one
// of the errors ignored.
func (p *Program) OnError(bad func(), ignored ...unix.Errno) {
	skip := p.newLabel()
	p.testRAX()
	p.jcc(condNS, skip)
	for _, e := range ignored {
		p.cmpRAX(-int32(e))
		p.jcc(condE, skip)
	}
	p.mov(regError, rax)
	bad()
	p.bind(skip)
}

// LogTo sends further messages to the descriptor that the last call returned.
func (p *Program) LogTo() { p.mov(regLog, rax) }

// Report writes text, ": errno ", the number of the last error and a newline.
func (p *Program) Report(text string) {
	text += ": errno "
	p.lea(rsi, p.Bytes(text).data)
	p.movImm(rdx, int64(len(text)))
	p.call(p.report)
}

// Exit ends the program.
func (p *Program) Exit(status int) { p.Syscall(unix.SYS_EXIT_GROUP, Int(status)) }

// Retry runs body up to times times, with a pause between. body leaves the
// loop with the function that it is given. Behind the loop, the last result is
// that of body's last call.
func (p *Program) Retry(times int, pause unix.Timespec, body func(done func())) {
	again, end := p.newLabel(), p.newLabel()
	p.movImm(regCounter, int64(times))
	p.bind(again)
	body(func() { p.jmp(end) })
	p.dec(regCounter)
	p.jcc(condE, end)
	ts := binary.LittleEndian.AppendUint64(nil, uint64(pause.Sec))
	ts = binary.LittleEndian.AppendUint64(ts, uint64(pause.Nsec))
	p.Syscall(unix.SYS_NANOSLEEP, p.Bytes(string(ts)), Int(0))
	p.jmp(again)
	p.bind(end)
}

// Exec executes path with the arguments and the environment that the program
// itself got, except that argument 0 becomes path.
func (p *Program) Exec(path string) {
	p.lea(rdi, p.String(path).data)
	p.emit(0x49, 0x89, 0x7c, 0x24, 0x08) // mov [r12+8], rdi: argv[0]
	p.emit(0x49, 0x8d, 0x74, 0x24, 0x08) // lea rsi, [r12+8]: argv
	p.emit(0x49, 0x8b, 0x04, 0x24)       // mov rax, [r12]: argc
	p.emit(0x49, 0x8d, 0x54, 0xc4, 0x10) // lea rdx, [r12+rax*8+16]: envp
	p.movImm(rax, unix.SYS_EXECVE)
	p.syscall()
}

// Setenv adds NAME=VALUE to the environment of what Exec executes. It takes
// the place of the auxiliary vector, which the program does not use.
func (p *Program) Setenv(entry string) {
	p.emit(0x49, 0x8b, 0x04, 0x24)       // mov rax, [r12]: argc
	p.emit(0x49, 0x8d, 0x7c, 0xc4, 0x10) // lea rdi, [r12+rax*8+16]: envp
	next := p.newLabel()
	p.bind(next)
	p.emit(0x48, 0x8b, 0x07)       // mov rax, [rdi]
	p.emit(0x48, 0x8d, 0x7f, 0x08) // lea rdi, [rdi+8]
	p.testRAX()
	p.jcc(condNE, next)
	p.lea(rax, p.String(entry).data)
	p.emit(0x48, 0x89, 0x47, 0xf8) // mov [rdi-8], rax
	p.movImm(rax, 0)
	p.emit(0x48, 0x89, 0x07) // mov [rdi], rax
}

// writeReport is the routine behind Report: RSI and RDX are the text and its
// length, regError is minus the error number. One writev, so that /dev/kmsg makes
// one record of it.
func (p *Program) writeReport() {
	p.bind(p.report)
	p.mov(r14, rsp)
	p.emit(0x89, 0xd8)                         // mov eax, ebx
	p.emit(0xf7, 0xd8)                         // neg eax
	p.emit(0x48, 0x83, 0xec, 0x20)             // sub rsp, 32: room for digits, from its end on
	p.emit(0x4c, 0x89, 0xf1)                   // mov rcx, r14
	p.emit(0x48, 0xff, 0xc9, 0xc6, 0x01, '\n') // dec rcx; mov byte [rcx], '\n'
	p.mov(r8, rdx)
	digit := p.newLabel()
	p.bind(digit)
	p.emit(0x31, 0xd2)                    // xor edx, edx
	p.emit(0xbf, 10, 0, 0, 0, 0xf7, 0xf7) // mov edi, 10; div edi
	p.emit(0x80, 0xc2, '0')               // add dl, '0'
	p.emit(0x48, 0xff, 0xc9, 0x88, 0x11)  // dec rcx; mov [rcx], dl
	p.emit(0x85, 0xc0)                    // test eax, eax
	p.jcc(condNE, digit)
	p.mov(rdx, r14)
	p.emit(0x48, 0x29, 0xca)             // sub rdx, rcx
	p.emit(0x52, 0x51, 0x41, 0x50, 0x56) // push rdx, rcx, r8, rsi: struct iovec[2]
	p.mov(rdi, regLog)
	p.mov(rsi, rsp)
	p.movImm(rdx, 2)
	p.movImm(rax, unix.SYS_WRITEV)
	p.syscall()
	p.mov(rsp, r14)
	p.ret()
}

// ELF layout.
const (
	elfBase      = 0x400000
	elfHeaders   = 64 + 2*56
	elfMachine   = 62
	elfExec      = 2
	ptLoad       = 1
	ptGNUStack   = 0x6474e551
	flagX, flagW = 1, 2
	flagR        = 4
)

// ELF ends the program, with exit status 0 should it get here, and returns it
// as a static executable.
func (p *Program) ELF() []byte {
	p.Exit(0)
	p.writeReport()
	for _, s := range p.strings {
		for len(p.code)%8 != 0 { // struct timespec wants it
			p.emit(0)
		}
		p.bind(p.data[s])
		p.emit([]byte(s)...)
	}
	p.link()
	le := binary.LittleEndian
	h := make([]byte, elfHeaders, elfHeaders+len(p.code))
	copy(h, "\x7fELF\x02\x01\x01")
	le.PutUint16(h[16:], elfExec)
	le.PutUint16(h[18:], elfMachine)
	le.PutUint32(h[20:], 1)                  // e_version
	le.PutUint64(h[24:], elfBase+elfHeaders) // e_entry
	le.PutUint64(h[32:], 64)                 // e_phoff
	le.PutUint16(h[52:], 64)                 // e_ehsize
	le.PutUint16(h[54:], 56)                 // e_phentsize
	le.PutUint16(h[56:], 2)                  // e_phnum
	size := uint64(elfHeaders + len(p.code))
	putProgram(h[64:], ptLoad, flagR|flagX, elfBase, size)
	putProgram(h[120:], ptGNUStack, flagR|flagW, 0, 0)
	return slices.Concat(h, p.code)
}

// putProgram writes a program header for the file's start.
func putProgram(h []byte, kind, flags uint32, addr, size uint64) {
	le := binary.LittleEndian
	le.PutUint32(h, kind)
	le.PutUint32(h[4:], flags)
	le.PutUint64(h[16:], addr) // p_vaddr
	le.PutUint64(h[24:], addr) // p_paddr
	le.PutUint64(h[32:], size) // p_filesz
	le.PutUint64(h[40:], size) // p_memsz
	le.PutUint64(h[48:], 0x1000)
}
