package initrd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"golang.org/x/arch/x86/x86asm"
	"golang.org/x/sys/unix"
)

// sim runs a Program's ELF file instruction by instruction, as decoded by
// x86asm, and records its system calls. It knows the few instructions that
// Program makes and fails the test at any other, so it also checks the encoding.
type sim struct {
	t      *testing.T
	code   []byte // of the file, at elfBase
	regs   [16]uint64
	zero   bool
	sign   bool
	stack  map[uint64]uint64
	trace  []string
	result func(call string) int64 // result of a system call
}

// run returns the trace up to exit_group or a successful execve.
func run(t *testing.T, elf []byte, result func(call string) int64) []string {
	t.Helper()
	s := &sim{t: t, code: elf, stack: map[uint64]uint64{}, result: result}
	s.regs[rsp] = simStack
	s.stack[simStack] = 1 // argc
	pc := binary.LittleEndian.Uint64(elf[24:])
	for range 100_000 {
		inst, err := x86asm.Decode(s.code[pc-elfBase:], 64)
		if err != nil {
			t.Fatalf("at %#x: %v (% x)", pc, err, s.code[pc-elfBase:][:8])
		}
		next := pc + uint64(inst.Len)
		if inst.Op == x86asm.SYSCALL {
			if s.syscall() {
				return s.trace
			}
			pc = next
			continue
		}
		pc = s.step(inst, next)
	}
	t.Fatalf("the program does not end:\n%v", s.trace[:50])
	return nil
}

const simStack = 0x7ffe_0000

// step executes one instruction and returns the next address.
func (s *sim) step(in x86asm.Inst, next uint64) uint64 {
	a, b := in.Args[0], in.Args[1]
	rel := func() uint64 { return next + uint64(int64(a.(x86asm.Rel))) }
	switch in.Op {
	case x86asm.MOV:
		s.set(a, s.get(b, next))
	case x86asm.LEA:
		s.set(a, s.addr(b.(x86asm.Mem), next))
	case x86asm.XOR:
		s.set(a, 0)
	case x86asm.TEST:
		v := int64(s.get(a, next))
		s.zero, s.sign = v == 0, v < 0
	case x86asm.CMP:
		s.zero = int64(s.get(a, next)) == int64(b.(x86asm.Imm))
	case x86asm.DEC:
		s.set(a, s.get(a, next)-1)
		s.zero = s.get(a, next) == 0
	case x86asm.JMP:
		return rel()
	case x86asm.JE:
		if s.zero {
			return rel()
		}
	case x86asm.JNE:
		if !s.zero {
			return rel()
		}
	case x86asm.JS:
		if s.sign {
			return rel()
		}
	case x86asm.JNS:
		if !s.sign {
			return rel()
		}
	case x86asm.CALL: // only the report routine is called
		n := s.regs[rdx]
		s.trace = append(s.trace, fmt.Sprintf("report(%d, %q %d)", int64(s.regs[regLog]), s.bytes(s.regs[rsi], n), -int64(s.regs[regError])))
	default:
		s.t.Fatalf("unexpected instruction %v", in)
	}
	return next
}

func (s *sim) get(a x86asm.Arg, next uint64) uint64 {
	switch a := a.(type) {
	case x86asm.Reg:
		return s.regs[regNumber(a)]
	case x86asm.Imm:
		return uint64(int64(a))
	case x86asm.Mem:
		return s.stack[s.addr(a, next)]
	}
	s.t.Fatalf("unexpected operand %v", a)
	return 0
}

func (s *sim) set(a x86asm.Arg, v uint64) {
	switch a := a.(type) {
	case x86asm.Reg:
		s.regs[regNumber(a)] = v
	case x86asm.Mem:
		s.stack[s.addr(a, 0)] = v
	}
}

func (s *sim) addr(m x86asm.Mem, next uint64) uint64 {
	v := uint64(m.Disp)
	if m.Base == x86asm.RIP {
		return next + uint64(int64(int32(m.Disp)))
	}
	v += s.regs[regNumber(m.Base)]
	if m.Index != 0 {
		v += s.regs[regNumber(m.Index)] * uint64(m.Scale)
	}
	return v
}

func regNumber(r x86asm.Reg) reg {
	if r >= x86asm.RAX {
		return reg(r - x86asm.RAX)
	}
	return reg(r - x86asm.EAX)
}

func (s *sim) bytes(at, n uint64) string { return string(s.code[at-elfBase:][:n]) }

func (s *sim) str(at uint64) string {
	if at == 0 {
		return "NULL"
	}
	b := s.code[at-elfBase:]
	return fmt.Sprintf("%q", b[:bytes.IndexByte(b, 0)])
}

// syscall records a call and reports whether the program ended.
func (s *sim) syscall() (ended bool) {
	a := [...]uint64{s.regs[rdi], s.regs[rsi], s.regs[rdx], s.regs[r10], s.regs[r8]}
	var c string
	switch nr := s.regs[rax]; nr {
	case unix.SYS_MOUNT:
		c = fmt.Sprintf("mount(%s, %s, %s, %#x, %s)", s.str(a[0]), s.str(a[1]), s.str(a[2]), a[3], s.str(a[4]))
	case unix.SYS_OPEN:
		c = fmt.Sprintf("open(%s, %#x)", s.str(a[0]), a[1])
	case unix.SYS_MKDIR:
		c = fmt.Sprintf("mkdir(%s, %#o)", s.str(a[0]), a[1])
	case unix.SYS_SENDFILE:
		c = fmt.Sprintf("sendfile(%d, %d, %d, %d)", a[0], a[1], a[2], a[3])
	case unix.SYS_FINIT_MODULE:
		c = fmt.Sprintf("finit_module(%d, %s, %d)", a[0], s.str(a[1]), a[2])
	case unix.SYS_CLOSE:
		c = fmt.Sprintf("close(%d)", a[0])
	case unix.SYS_UNLINK:
		c = fmt.Sprintf("unlink(%s)", s.str(a[0]))
	case unix.SYS_ACCESS:
		c = fmt.Sprintf("access(%s, %d)", s.str(a[0]), a[1])
	case unix.SYS_NANOSLEEP:
		ts := s.bytes(a[0], 16)
		c = fmt.Sprintf("nanosleep(%d, %d)", binary.LittleEndian.Uint64([]byte(ts)), binary.LittleEndian.Uint64([]byte(ts[8:])))
	case unix.SYS_DUP2:
		c = fmt.Sprintf("dup2(%d, %d)", a[0], a[1])
	case unix.SYS_FCNTL:
		c = fmt.Sprintf("fcntl(%d, %d, %d)", a[0], a[1], a[2])
	case unix.SYS_CHDIR:
		c = fmt.Sprintf("chdir(%s)", s.str(a[0]))
	case unix.SYS_CHROOT:
		c = fmt.Sprintf("chroot(%s)", s.str(a[0]))
	case unix.SYS_EXECVE:
		c = fmt.Sprintf("execve(%s, argv[0]=%s, argv%+d, envp%+d)", s.str(a[0]), s.str(s.stack[simStack+8]), int64(a[1]-simStack), int64(a[2]-simStack))
	case unix.SYS_EXIT_GROUP:
		s.trace = append(s.trace, fmt.Sprintf("exit(%d)", a[0]))
		return true
	default:
		s.t.Fatalf("unexpected system call %d", nr)
	}
	v := s.result(c)
	s.trace = append(s.trace, fmt.Sprintf("%s = %d", c, v))
	s.regs[rax], s.regs[rcx], s.regs[r11] = uint64(v), 0xdead, 0xdead // the call destroys these
	return v == 0 && s.code != nil && len(c) > 6 && c[:6] == "execve"
}
