package initrd

import "golang.org/x/sys/unix"

// Buffers of FindDevice on the stack: directory entries, and behind them a
// link's target or a file's content, the length of that, and a descriptor.
const (
	entriesSize = 4096
	textAt      = entriesSize
	textSize    = 256
	lengthAt    = textAt + textSize
	fdAt        = lengthAt + 8
	reserved    = fdAt + 8
)

// Reserve makes room on the stack for FindDevice.
func (p *Program) Reserve() {
	p.emit(0x48, 0x81, 0xec) // sub rsp, imm32
	p.imm32(reserved)
}

// store is mov [rsp+off], rax.
func (p *Program) store(off uint32) {
	p.emit(0x48, 0x89, 0x84, 0x24)
	p.imm32(off)
}

// load is mov r, [rsp+off], for r below R8.
func (p *Program) load(r reg, off uint32) {
	p.emit(0x48, 0x8b, 0x84|byte(r)<<3, 0x24)
	p.imm32(off)
}

// stackArg is lea r, [rsp+off], for r below R8.
func (p *Program) stackArg(r reg, off uint32) {
	p.emit(0x48, 0x8d, 0x84|byte(r)<<3, 0x24)
	p.imm32(off)
}

// bareSyscall makes the system call nr, whose arguments are in their registers.
func (p *Program) bareSyscall(nr int64) {
	p.movImm(rax, nr)
	p.syscall()
}

// beginsWith jumps to no unless the text on the stack begins with s.
func (p *Program) beginsWith(s string, no label) {
	p.stackArg(rsi, textAt)
	p.lea(rdi, p.Bytes(s).data)
	p.movImm(rcx, int64(len(s)))
	p.emit(0xf3, 0xa6) // repe cmpsb
	p.jcc(condNE, no)
}

// FindDevice searches the directory dir, such as /sys/class/block, for a link
// whose target begins with prefix and leads to a directory with a file that
// has this content, or, if that is empty, just with this file. The path
// "/dev/NAME" of the link's name is then [Program.OtherKept]. The result is
// 0 or an error. It needs [Program.Reserve], and changes what is kept.
func (p *Program) FindDevice(dir, prefix, file, content string) {
	more, entry, next, found, end, failed := p.newLabel(), p.newLabel(), p.newLabel(), p.newLabel(), p.newLabel(), p.newLabel()
	p.Syscall(unix.SYS_OPEN, p.String(dir), Int(unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC))
	p.testRAX()
	p.jcc(condS, failed)
	p.Keep()

	p.bind(more) // RBX is the entry, R14 the end of all
	p.mov(rdi, regKeep)
	p.mov(rsi, rsp)
	p.movImm(rdx, entriesSize)
	p.bareSyscall(unix.SYS_GETDENTS64)
	p.testRAX()
	p.jcc(condS, end)
	p.jcc(condE, end)
	p.mov(rbx, rsp)
	p.emit(0x4c, 0x8d, 0x34, 0x04) // lea r14, [rsp+rax]

	p.bind(entry)
	p.emit(0x4c, 0x39, 0xf3) // cmp rbx, r14
	p.jcc(condE, more)
	p.entryName(rsi)
	p.mov(rdi, regKeep)
	p.stackArg(rdx, textAt)
	p.movImm(r10, textSize)
	p.bareSyscall(unix.SYS_READLINKAT)
	p.cmpRAX(int32(len(prefix)))
	p.jcc(condL, next)
	p.beginsWith(prefix, next)

	p.readEntry(file, next)
	if content != "" {
		p.load(rax, lengthAt)
		p.cmpRAX(int32(len(content)))
		p.jcc(condNE, next)
		p.beginsWith(content, next)
	}
	// struct linux_dirent64 has room before d_name: of d_reclen and d_type.
	p.emit(0xc7, 0x43, entryNameAt-5, '/', 'd', 'e', 'v') // mov dword [rbx+14], "/dev"
	p.emit(0xc6, 0x43, entryNameAt-1, '/')                // mov byte [rbx+18], '/'
	p.emit(0x4c, 0x8d, 0x73, entryNameAt-5)               // lea r14, [rbx+14]
	p.jmp(found)

	p.bind(next)
	p.emit(0x0f, 0xb7, 0x43, entryLengthAt) // movzx eax, word [rbx+16]
	p.emit(0x48, 0x01, 0xc3)                // add rbx, rax
	p.jmp(entry)

	p.bind(end)
	p.mov(rdi, regKeep)
	p.bareSyscall(unix.SYS_CLOSE)
	p.movImm(rax, -int64(unix.ENODEV))
	p.jmp(failed)
	p.bind(found)
	p.mov(rdi, regKeep)
	p.bareSyscall(unix.SYS_CLOSE)
	p.bind(failed)
}

// readEntry reads a file of FindDevice's directory entry: its text and length are
// on the stack. It jumps to no when there is none.
func (p *Program) readEntry(file string, no label) {
	closeStored := func() {
		p.load(rdi, fdAt)
		p.bareSyscall(unix.SYS_CLOSE)
	}
	p.mov(rdi, regKeep)
	p.entryName(rsi)
	p.movImm(rdx, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)
	p.bareSyscall(unix.SYS_OPENAT)
	p.testRAX()
	p.jcc(condS, no)
	p.store(fdAt)
	p.mov(rdi, rax)
	p.lea(rsi, p.String(file).data)
	p.movImm(rdx, unix.O_RDONLY|unix.O_CLOEXEC)
	p.bareSyscall(unix.SYS_OPENAT)
	p.store(lengthAt) // the descriptor, for now
	closeStored()
	p.load(rax, lengthAt)
	p.testRAX()
	p.jcc(condS, no)
	p.store(fdAt)
	p.mov(rdi, rax)
	p.stackArg(rsi, textAt)
	p.movImm(rdx, textSize)
	p.bareSyscall(unix.SYS_READ)
	p.store(lengthAt)
	closeStored()
}

// Offsets in struct linux_dirent64 (getdents64(2)).
const (
	entryLengthAt = 16 // d_reclen
	entryNameAt   = 19 // d_name
)

// entryName is lea r, [rbx+19]: FindDevice's name, for r below R8.
func (p *Program) entryName(r reg) { p.emit(0x48, 0x8d, 0x43|byte(r)<<3, entryNameAt) }
