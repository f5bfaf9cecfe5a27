package decode

// Op is an operation, named as in the SDM. Several opcodes share one; some of
// ours differ: callr and jmpr are the indirect near forms, imul2 and imul3 the
// forms with two and three operands, movseg the load of a segment register,
// x87 any of D8 to DF, and a trailing v stands for the operand size.
type Op uint16

// The operations.
const (
	Invalid Op = iota
	ADD
	OR
	ADC
	SBB
	AND
	SUB
	XOR
	CMP
	PUSH
	POP
	DAA
	DAS
	AAA
	AAS
	INC
	DEC
	PUSHA
	POPA
	BOUND
	MOVSXD
	ARPL
	IMUL3
	INSB
	INSV
	OUTSB
	OUTSV
	JCC
	TEST
	XCHG
	MOV
	LEA
	MOVSEG
	PAUSE
	CBW
	CWD
	CALLF
	FWAIT
	PUSHF
	POPF
	SAHF
	LAHF
	MOVSB
	MOVSV
	CMPSB
	CMPSV
	STOSB
	STOSV
	LODSB
	LODSV
	SCASB
	SCASV
	ROL
	ROR
	RCL
	RCR
	SHL
	SHR
	SAR
	RET
	LES
	LDS
	ENTER
	LEAVE
	RETF
	INT3
	INT
	INTO
	IRET
	AAM
	AAD
	SALC
	XLAT
	X87
	LOOPNE
	LOOPE
	LOOP
	JCXZ
	IN
	OUT
	CALL
	JMP
	JMPF
	INT1
	HLT
	CMC
	NOT
	NEG
	MUL
	IMUL
	DIV
	IDIV
	CLC
	STC
	CLI
	STI
	CLD
	STD
	CALLR
	JMPR
	SLDT
	STR
	LLDT
	LTR
	VERR
	VERW
	SGDT
	SIDT
	LGDT
	LIDT
	SMSW
	LMSW
	INVLPG
	VMCALL
	MONITOR
	MWAIT
	CLAC
	STAC
	XGETBV
	XSETBV
	VMMCALL
	RDPKRU
	WRPKRU
	SWAPGS
	RDTSCP
	LAR
	LSL
	SYSCALL
	CLTS
	SYSRET
	INVD
	WBINVD
	UD2
	NOP
	MOVUPS
	MOVUPD
	MOVSS
	MOVSD
	MOVLPS
	MOVHLPS
	MOVLPD
	MOVSLDUP
	MOVDDUP
	UNPCKLPS
	UNPCKLPD
	UNPCKHPS
	UNPCKHPD
	MOVHPS
	MOVLHPS
	MOVHPD
	MOVSHDUP
	MOVAPS
	MOVAPD
	CVTPI2PS
	CVTPI2PD
	CVTSI2SS
	CVTSI2SD
	MOVNTPS
	MOVNTPD
	CVTTPS2PI
	CVTTPD2PI
	CVTTSS2SI
	CVTTSD2SI
	CVTPS2PI
	CVTPD2PI
	CVTSS2SI
	CVTSD2SI
	UCOMISS
	UCOMISD
	COMISS
	COMISD
	WRMSR
	RDTSC
	RDMSR
	RDPMC
	SYSENTER
	SYSEXIT
	CMOVCC
	MOVMSKPS
	MOVMSKPD
	SQRTPS
	SQRTPD
	SQRTSS
	SQRTSD
	RSQRTPS
	RSQRTSS
	RCPPS
	RCPSS
	ANDPS
	ANDPD
	ANDNPS
	ANDNPD
	ORPS
	ORPD
	XORPS
	XORPD
	ADDPS
	ADDPD
	ADDSS
	ADDSD
	MULPS
	MULPD
	MULSS
	MULSD
	CVTPS2PD
	CVTPD2PS
	CVTSS2SD
	CVTSD2SS
	CVTDQ2PS
	CVTPS2DQ
	CVTTPS2DQ
	SUBPS
	SUBPD
	SUBSS
	SUBSD
	MINPS
	MINPD
	MINSS
	MINSD
	DIVPS
	DIVPD
	DIVSS
	DIVSD
	MAXPS
	MAXPD
	MAXSS
	MAXSD
	PUNPCKLBW
	PUNPCKLWD
	PUNPCKLDQ
	PACKSSWB
	PCMPGTB
	PCMPGTW
	PCMPGTD
	PACKUSWB
	PUNPCKHBW
	PUNPCKHWD
	PUNPCKHDQ
	PACKSSDW
	PUNPCKLQDQ
	PUNPCKHQDQ
	MOVD
	MOVQ
	MOVDQA
	MOVDQU
	PSHUFW
	PSHUFD
	PSHUFHW
	PSHUFLW
	PSRLW
	PSRAW
	PSLLW
	PSRLD
	PSRAD
	PSLLD
	PSRLQ
	PSRLDQ
	PSLLQ
	PSLLDQ
	PCMPEQB
	PCMPEQW
	PCMPEQD
	EMMS
	HADDPD
	HADDPS
	HSUBPD
	HSUBPS
	SETCC
	CPUID
	BT
	SHLD
	RSM
	BTS
	SHRD
	FXSAVE
	FXRSTOR
	LDMXCSR
	STMXCSR
	XSAVE
	XRSTOR
	XSAVEOPT
	CLWB
	CLFLUSH
	CLFLUSHOPT
	LFENCE
	MFENCE
	SFENCE
	RDFSBASE
	RDGSBASE
	WRFSBASE
	WRGSBASE
	IMUL2
	CMPXCHG
	LSS
	BTR
	LFS
	LGS
	MOVZX
	POPCNT
	UD1
	BTC
	TZCNT
	BSF
	LZCNT
	BSR
	MOVSX
	XADD
	CMPPS
	CMPPD
	CMPSS
	CMPSD
	MOVNTI
	PINSRW
	PEXTRW
	SHUFPS
	SHUFPD
	CMPXCHG8B
	XRSTORS
	XSAVEC
	XSAVES
	RDPID
	RDRAND
	RDSEED
	BSWAP
	ADDSUBPD
	ADDSUBPS
	PADDQ
	PMULLW
	MOVQ2DQ
	MOVDQ2Q
	PMOVMSKB
	PSUBUSB
	PSUBUSW
	PMINUB
	PAND
	PADDUSB
	PADDUSW
	PMAXUB
	PANDN
	PAVGB
	PAVGW
	PMULHUW
	PMULHW
	CVTTPD2DQ
	CVTDQ2PD
	CVTPD2DQ
	MOVNTQ
	MOVNTDQ
	PSUBSB
	PSUBSW
	PMINSW
	POR
	PADDSB
	PADDSW
	PMAXSW
	PXOR
	LDDQU
	PMULUDQ
	PMADDWD
	PSADBW
	MASKMOVQ
	MASKMOVDQU
	PSUBB
	PSUBW
	PSUBD
	PSUBQ
	PADDB
	PADDW
	PADDD
	UD0
	PSHUFB
	PHADDW
	PHADDD
	PHADDSW
	PMADDUBSW
	PHSUBW
	PHSUBD
	PHSUBSW
	PSIGNB
	PSIGNW
	PSIGND
	PMULHRSW
	PBLENDVB
	BLENDVPS
	BLENDVPD
	PTEST
	PABSB
	PABSW
	PABSD
	PMOVSXBW
	PMOVSXBD
	PMOVSXBQ
	PMOVSXWD
	PMOVSXWQ
	PMOVSXDQ
	PMULDQ
	PCMPEQQ
	MOVNTDQA
	PACKUSDW
	PMOVZXBW
	PMOVZXBD
	PMOVZXBQ
	PMOVZXWD
	PMOVZXWQ
	PMOVZXDQ
	PCMPGTQ
	PMINSB
	PMINSD
	PMINUW
	PMINUD
	PMAXSB
	PMAXSD
	PMAXUW
	PMAXUD
	PMULLD
	PHMINPOSUW
	INVPCID
	SHA1NEXTE
	SHA1MSG1
	SHA1MSG2
	SHA256RNDS2
	SHA256MSG1
	SHA256MSG2
	AESIMC
	AESENC
	AESENCLAST
	AESDEC
	AESDECLAST
	CRC32
	MOVBE
	ADCX
	ADOX
	ROUNDPS
	ROUNDPD
	ROUNDSS
	ROUNDSD
	BLENDPS
	BLENDPD
	PBLENDW
	PALIGNR
	PEXTRB
	PEXTRD
	EXTRACTPS
	PINSRB
	INSERTPS
	PINSRD
	DPPS
	DPPD
	MPSADBW
	PCLMULQDQ
	PCMPESTRM
	PCMPESTRI
	PCMPISTRM
	PCMPISTRI
	SHA1RNDS4
	AESKEYGENASSIST

	VEX // any VEX-encoded instruction but the following
	VZEROUPPER
	VMASKMOV // and VPMASKMOV; Imm is 1 for a store
	VGATHER  // and VPGATHER
	numOps
)

// NumOps is the number of operations, Invalid included.
const NumOps = int(numOps)

var opNames = [numOps]string{
	ADD:             "add",
	OR:              "or",
	ADC:             "adc",
	SBB:             "sbb",
	AND:             "and",
	SUB:             "sub",
	XOR:             "xor",
	CMP:             "cmp",
	PUSH:            "push",
	POP:             "pop",
	DAA:             "daa",
	DAS:             "das",
	AAA:             "aaa",
	AAS:             "aas",
	INC:             "inc",
	DEC:             "dec",
	PUSHA:           "pusha",
	POPA:            "popa",
	BOUND:           "bound",
	MOVSXD:          "movsxd",
	ARPL:            "arpl",
	IMUL3:           "imul3",
	INSB:            "insb",
	INSV:            "insv",
	OUTSB:           "outsb",
	OUTSV:           "outsv",
	JCC:             "jcc",
	TEST:            "test",
	XCHG:            "xchg",
	MOV:             "mov",
	LEA:             "lea",
	MOVSEG:          "movseg",
	PAUSE:           "pause",
	CBW:             "cbw",
	CWD:             "cwd",
	CALLF:           "callf",
	FWAIT:           "fwait",
	PUSHF:           "pushf",
	POPF:            "popf",
	SAHF:            "sahf",
	LAHF:            "lahf",
	MOVSB:           "movsb",
	MOVSV:           "movsv",
	CMPSB:           "cmpsb",
	CMPSV:           "cmpsv",
	STOSB:           "stosb",
	STOSV:           "stosv",
	LODSB:           "lodsb",
	LODSV:           "lodsv",
	SCASB:           "scasb",
	SCASV:           "scasv",
	ROL:             "rol",
	ROR:             "ror",
	RCL:             "rcl",
	RCR:             "rcr",
	SHL:             "shl",
	SHR:             "shr",
	SAR:             "sar",
	RET:             "ret",
	LES:             "les",
	LDS:             "lds",
	ENTER:           "enter",
	LEAVE:           "leave",
	RETF:            "retf",
	INT3:            "int3",
	INT:             "int",
	INTO:            "into",
	IRET:            "iret",
	AAM:             "aam",
	AAD:             "aad",
	SALC:            "salc",
	XLAT:            "xlat",
	X87:             "x87",
	LOOPNE:          "loopne",
	LOOPE:           "loope",
	LOOP:            "loop",
	JCXZ:            "jcxz",
	IN:              "in",
	OUT:             "out",
	CALL:            "call",
	JMP:             "jmp",
	JMPF:            "jmpf",
	INT1:            "int1",
	HLT:             "hlt",
	CMC:             "cmc",
	NOT:             "not",
	NEG:             "neg",
	MUL:             "mul",
	IMUL:            "imul",
	DIV:             "div",
	IDIV:            "idiv",
	CLC:             "clc",
	STC:             "stc",
	CLI:             "cli",
	STI:             "sti",
	CLD:             "cld",
	STD:             "std",
	CALLR:           "callr",
	JMPR:            "jmpr",
	SLDT:            "sldt",
	STR:             "str",
	LLDT:            "lldt",
	LTR:             "ltr",
	VERR:            "verr",
	VERW:            "verw",
	SGDT:            "sgdt",
	SIDT:            "sidt",
	LGDT:            "lgdt",
	LIDT:            "lidt",
	SMSW:            "smsw",
	LMSW:            "lmsw",
	INVLPG:          "invlpg",
	VMCALL:          "vmcall",
	MONITOR:         "monitor",
	MWAIT:           "mwait",
	CLAC:            "clac",
	STAC:            "stac",
	XGETBV:          "xgetbv",
	XSETBV:          "xsetbv",
	VMMCALL:         "vmmcall",
	RDPKRU:          "rdpkru",
	WRPKRU:          "wrpkru",
	SWAPGS:          "swapgs",
	RDTSCP:          "rdtscp",
	LAR:             "lar",
	LSL:             "lsl",
	SYSCALL:         "syscall",
	CLTS:            "clts",
	SYSRET:          "sysret",
	INVD:            "invd",
	WBINVD:          "wbinvd",
	UD2:             "ud2",
	NOP:             "nop",
	MOVUPS:          "movups",
	MOVUPD:          "movupd",
	MOVSS:           "movss",
	MOVSD:           "movsd",
	MOVLPS:          "movlps",
	MOVHLPS:         "movhlps",
	MOVLPD:          "movlpd",
	MOVSLDUP:        "movsldup",
	MOVDDUP:         "movddup",
	UNPCKLPS:        "unpcklps",
	UNPCKLPD:        "unpcklpd",
	UNPCKHPS:        "unpckhps",
	UNPCKHPD:        "unpckhpd",
	MOVHPS:          "movhps",
	MOVLHPS:         "movlhps",
	MOVHPD:          "movhpd",
	MOVSHDUP:        "movshdup",
	MOVAPS:          "movaps",
	MOVAPD:          "movapd",
	CVTPI2PS:        "cvtpi2ps",
	CVTPI2PD:        "cvtpi2pd",
	CVTSI2SS:        "cvtsi2ss",
	CVTSI2SD:        "cvtsi2sd",
	MOVNTPS:         "movntps",
	MOVNTPD:         "movntpd",
	CVTTPS2PI:       "cvttps2pi",
	CVTTPD2PI:       "cvttpd2pi",
	CVTTSS2SI:       "cvttss2si",
	CVTTSD2SI:       "cvttsd2si",
	CVTPS2PI:        "cvtps2pi",
	CVTPD2PI:        "cvtpd2pi",
	CVTSS2SI:        "cvtss2si",
	CVTSD2SI:        "cvtsd2si",
	UCOMISS:         "ucomiss",
	UCOMISD:         "ucomisd",
	COMISS:          "comiss",
	COMISD:          "comisd",
	WRMSR:           "wrmsr",
	RDTSC:           "rdtsc",
	RDMSR:           "rdmsr",
	RDPMC:           "rdpmc",
	SYSENTER:        "sysenter",
	SYSEXIT:         "sysexit",
	CMOVCC:          "cmovcc",
	MOVMSKPS:        "movmskps",
	MOVMSKPD:        "movmskpd",
	SQRTPS:          "sqrtps",
	SQRTPD:          "sqrtpd",
	SQRTSS:          "sqrtss",
	SQRTSD:          "sqrtsd",
	RSQRTPS:         "rsqrtps",
	RSQRTSS:         "rsqrtss",
	RCPPS:           "rcpps",
	RCPSS:           "rcpss",
	ANDPS:           "andps",
	ANDPD:           "andpd",
	ANDNPS:          "andnps",
	ANDNPD:          "andnpd",
	ORPS:            "orps",
	ORPD:            "orpd",
	XORPS:           "xorps",
	XORPD:           "xorpd",
	ADDPS:           "addps",
	ADDPD:           "addpd",
	ADDSS:           "addss",
	ADDSD:           "addsd",
	MULPS:           "mulps",
	MULPD:           "mulpd",
	MULSS:           "mulss",
	MULSD:           "mulsd",
	CVTPS2PD:        "cvtps2pd",
	CVTPD2PS:        "cvtpd2ps",
	CVTSS2SD:        "cvtss2sd",
	CVTSD2SS:        "cvtsd2ss",
	CVTDQ2PS:        "cvtdq2ps",
	CVTPS2DQ:        "cvtps2dq",
	CVTTPS2DQ:       "cvttps2dq",
	SUBPS:           "subps",
	SUBPD:           "subpd",
	SUBSS:           "subss",
	SUBSD:           "subsd",
	MINPS:           "minps",
	MINPD:           "minpd",
	MINSS:           "minss",
	MINSD:           "minsd",
	DIVPS:           "divps",
	DIVPD:           "divpd",
	DIVSS:           "divss",
	DIVSD:           "divsd",
	MAXPS:           "maxps",
	MAXPD:           "maxpd",
	MAXSS:           "maxss",
	MAXSD:           "maxsd",
	PUNPCKLBW:       "punpcklbw",
	PUNPCKLWD:       "punpcklwd",
	PUNPCKLDQ:       "punpckldq",
	PACKSSWB:        "packsswb",
	PCMPGTB:         "pcmpgtb",
	PCMPGTW:         "pcmpgtw",
	PCMPGTD:         "pcmpgtd",
	PACKUSWB:        "packuswb",
	PUNPCKHBW:       "punpckhbw",
	PUNPCKHWD:       "punpckhwd",
	PUNPCKHDQ:       "punpckhdq",
	PACKSSDW:        "packssdw",
	PUNPCKLQDQ:      "punpcklqdq",
	PUNPCKHQDQ:      "punpckhqdq",
	MOVD:            "movd",
	MOVQ:            "movq",
	MOVDQA:          "movdqa",
	MOVDQU:          "movdqu",
	PSHUFW:          "pshufw",
	PSHUFD:          "pshufd",
	PSHUFHW:         "pshufhw",
	PSHUFLW:         "pshuflw",
	PSRLW:           "psrlw",
	PSRAW:           "psraw",
	PSLLW:           "psllw",
	PSRLD:           "psrld",
	PSRAD:           "psrad",
	PSLLD:           "pslld",
	PSRLQ:           "psrlq",
	PSRLDQ:          "psrldq",
	PSLLQ:           "psllq",
	PSLLDQ:          "pslldq",
	PCMPEQB:         "pcmpeqb",
	PCMPEQW:         "pcmpeqw",
	PCMPEQD:         "pcmpeqd",
	EMMS:            "emms",
	HADDPD:          "haddpd",
	HADDPS:          "haddps",
	HSUBPD:          "hsubpd",
	HSUBPS:          "hsubps",
	SETCC:           "setcc",
	CPUID:           "cpuid",
	BT:              "bt",
	SHLD:            "shld",
	RSM:             "rsm",
	BTS:             "bts",
	SHRD:            "shrd",
	FXSAVE:          "fxsave",
	FXRSTOR:         "fxrstor",
	LDMXCSR:         "ldmxcsr",
	STMXCSR:         "stmxcsr",
	XSAVE:           "xsave",
	XRSTOR:          "xrstor",
	XSAVEOPT:        "xsaveopt",
	CLWB:            "clwb",
	CLFLUSH:         "clflush",
	CLFLUSHOPT:      "clflushopt",
	LFENCE:          "lfence",
	MFENCE:          "mfence",
	SFENCE:          "sfence",
	RDFSBASE:        "rdfsbase",
	RDGSBASE:        "rdgsbase",
	WRFSBASE:        "wrfsbase",
	WRGSBASE:        "wrgsbase",
	IMUL2:           "imul2",
	CMPXCHG:         "cmpxchg",
	LSS:             "lss",
	BTR:             "btr",
	LFS:             "lfs",
	LGS:             "lgs",
	MOVZX:           "movzx",
	POPCNT:          "popcnt",
	UD1:             "ud1",
	BTC:             "btc",
	TZCNT:           "tzcnt",
	BSF:             "bsf",
	LZCNT:           "lzcnt",
	BSR:             "bsr",
	MOVSX:           "movsx",
	XADD:            "xadd",
	CMPPS:           "cmpps",
	CMPPD:           "cmppd",
	CMPSS:           "cmpss",
	CMPSD:           "cmpsd",
	MOVNTI:          "movnti",
	PINSRW:          "pinsrw",
	PEXTRW:          "pextrw",
	SHUFPS:          "shufps",
	SHUFPD:          "shufpd",
	CMPXCHG8B:       "cmpxchg8b",
	XRSTORS:         "xrstors",
	XSAVEC:          "xsavec",
	XSAVES:          "xsaves",
	RDPID:           "rdpid",
	RDRAND:          "rdrand",
	RDSEED:          "rdseed",
	BSWAP:           "bswap",
	ADDSUBPD:        "addsubpd",
	ADDSUBPS:        "addsubps",
	PADDQ:           "paddq",
	PMULLW:          "pmullw",
	MOVQ2DQ:         "movq2dq",
	MOVDQ2Q:         "movdq2q",
	PMOVMSKB:        "pmovmskb",
	PSUBUSB:         "psubusb",
	PSUBUSW:         "psubusw",
	PMINUB:          "pminub",
	PAND:            "pand",
	PADDUSB:         "paddusb",
	PADDUSW:         "paddusw",
	PMAXUB:          "pmaxub",
	PANDN:           "pandn",
	PAVGB:           "pavgb",
	PAVGW:           "pavgw",
	PMULHUW:         "pmulhuw",
	PMULHW:          "pmulhw",
	CVTTPD2DQ:       "cvttpd2dq",
	CVTDQ2PD:        "cvtdq2pd",
	CVTPD2DQ:        "cvtpd2dq",
	MOVNTQ:          "movntq",
	MOVNTDQ:         "movntdq",
	PSUBSB:          "psubsb",
	PSUBSW:          "psubsw",
	PMINSW:          "pminsw",
	POR:             "por",
	PADDSB:          "paddsb",
	PADDSW:          "paddsw",
	PMAXSW:          "pmaxsw",
	PXOR:            "pxor",
	LDDQU:           "lddqu",
	PMULUDQ:         "pmuludq",
	PMADDWD:         "pmaddwd",
	PSADBW:          "psadbw",
	MASKMOVQ:        "maskmovq",
	MASKMOVDQU:      "maskmovdqu",
	PSUBB:           "psubb",
	PSUBW:           "psubw",
	PSUBD:           "psubd",
	PSUBQ:           "psubq",
	PADDB:           "paddb",
	PADDW:           "paddw",
	PADDD:           "paddd",
	UD0:             "ud0",
	PSHUFB:          "pshufb",
	PHADDW:          "phaddw",
	PHADDD:          "phaddd",
	PHADDSW:         "phaddsw",
	PMADDUBSW:       "pmaddubsw",
	PHSUBW:          "phsubw",
	PHSUBD:          "phsubd",
	PHSUBSW:         "phsubsw",
	PSIGNB:          "psignb",
	PSIGNW:          "psignw",
	PSIGND:          "psignd",
	PMULHRSW:        "pmulhrsw",
	PBLENDVB:        "pblendvb",
	BLENDVPS:        "blendvps",
	BLENDVPD:        "blendvpd",
	PTEST:           "ptest",
	PABSB:           "pabsb",
	PABSW:           "pabsw",
	PABSD:           "pabsd",
	PMOVSXBW:        "pmovsxbw",
	PMOVSXBD:        "pmovsxbd",
	PMOVSXBQ:        "pmovsxbq",
	PMOVSXWD:        "pmovsxwd",
	PMOVSXWQ:        "pmovsxwq",
	PMOVSXDQ:        "pmovsxdq",
	PMULDQ:          "pmuldq",
	PCMPEQQ:         "pcmpeqq",
	MOVNTDQA:        "movntdqa",
	PACKUSDW:        "packusdw",
	PMOVZXBW:        "pmovzxbw",
	PMOVZXBD:        "pmovzxbd",
	PMOVZXBQ:        "pmovzxbq",
	PMOVZXWD:        "pmovzxwd",
	PMOVZXWQ:        "pmovzxwq",
	PMOVZXDQ:        "pmovzxdq",
	PCMPGTQ:         "pcmpgtq",
	PMINSB:          "pminsb",
	PMINSD:          "pminsd",
	PMINUW:          "pminuw",
	PMINUD:          "pminud",
	PMAXSB:          "pmaxsb",
	PMAXSD:          "pmaxsd",
	PMAXUW:          "pmaxuw",
	PMAXUD:          "pmaxud",
	PMULLD:          "pmulld",
	PHMINPOSUW:      "phminposuw",
	INVPCID:         "invpcid",
	SHA1NEXTE:       "sha1nexte",
	SHA1MSG1:        "sha1msg1",
	SHA1MSG2:        "sha1msg2",
	SHA256RNDS2:     "sha256rnds2",
	SHA256MSG1:      "sha256msg1",
	SHA256MSG2:      "sha256msg2",
	AESIMC:          "aesimc",
	AESENC:          "aesenc",
	AESENCLAST:      "aesenclast",
	AESDEC:          "aesdec",
	AESDECLAST:      "aesdeclast",
	CRC32:           "crc32",
	MOVBE:           "movbe",
	ADCX:            "adcx",
	ADOX:            "adox",
	ROUNDPS:         "roundps",
	ROUNDPD:         "roundpd",
	ROUNDSS:         "roundss",
	ROUNDSD:         "roundsd",
	BLENDPS:         "blendps",
	BLENDPD:         "blendpd",
	PBLENDW:         "pblendw",
	PALIGNR:         "palignr",
	PEXTRB:          "pextrb",
	PEXTRD:          "pextrd",
	EXTRACTPS:       "extractps",
	PINSRB:          "pinsrb",
	INSERTPS:        "insertps",
	PINSRD:          "pinsrd",
	DPPS:            "dpps",
	DPPD:            "dppd",
	MPSADBW:         "mpsadbw",
	PCLMULQDQ:       "pclmulqdq",
	PCMPESTRM:       "pcmpestrm",
	PCMPESTRI:       "pcmpestri",
	PCMPISTRM:       "pcmpistrm",
	PCMPISTRI:       "pcmpistri",
	SHA1RNDS4:       "sha1rnds4",
	AESKEYGENASSIST: "aeskeygenassist",
	VEX:             "vex",
	VZEROUPPER:      "vzeroupper",
	VMASKMOV:        "vmaskmov",
	VGATHER:         "vgather",
}
