#include "textflag.h"

// func windowFaultAddr() uint64
TEXT ·windowFaultAddr(SB), NOSPLIT, $0-8
	LEAQ ·windowFault(SB), AX
	MOVQ AX, ret+0(FP)
	RET

// windowFault is the handler of SIGBUS (7) and SIGSEGV (11), called by the
// kernel on the alternate stack: DI is the signal, SI the siginfo_t, DX the
// ucontext_t. All registers are restored when it returns.
TEXT ·windowFault(SB), NOSPLIT|NOFRAME|TOPFRAME, $0
	CMPL 8(SI), $0 // si_code: only faults, no signals sent by processes
	JLE  others
	MOVQ 16(SI), AX // si_addr
	LEAQ ·windows(SB), BX
	MOVL $64, CX // maxWindows

search:
	CMPQ AX, 0(BX) // lo
	JCS  next
	CMPQ AX, 8(BX) // hi
	JCS  found

next:
	ADDQ $24, BX
	DECL CX
	JNZ  search

others:
	LEAQ ·oldHandler(SB), AX
	MOVQ (AX)(DI*8), AX
	JMP  AX

found:
	// mmap(page, end of its 2 MiB or of the window, ...)
	LOCK
	INCQ 16(BX)
	MOVQ DI, R12
	MOVQ SI, R13
	MOVQ DX, R14
	MOVQ AX, DI
	ANDQ $~4095, DI
	MOVQ AX, SI
	SUBQ 0(BX), SI
	ORQ  $0x1fffff, SI
	INCQ SI
	ADDQ 0(BX), SI
	CMPQ SI, 8(BX)
	JLS  map
	MOVQ 8(BX), SI

map:
	SUBQ DI, SI
	MOVL $3, DX       // PROT_READ|PROT_WRITE
	MOVL $0x4032, R10 // MAP_PRIVATE|MAP_FIXED|MAP_ANONYMOUS|MAP_NORESERVE
	MOVQ $-1, R8
	XORL R9, R9
	MOVL $9, AX // SYS_mmap
	SYSCALL
	CMPQ AX, $-4095
	JCS  done

	// Too many mappings: all of the window becomes one.
	MOVQ 0(BX), DI
	MOVQ 8(BX), SI
	SUBQ DI, SI
	MOVL $9, AX
	SYSCALL
	CMPQ AX, $-4095
	JCS  done
	MOVQ R12, DI
	MOVQ R13, SI
	MOVQ R14, DX
	JMP  others

done:
	RET
