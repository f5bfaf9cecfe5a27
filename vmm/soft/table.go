package soft

import "github.com/gvmspawn/gvmspawn/vmm/soft/decode"

// generic is the reference implementation of every operation; nil is #UD.
var generic [decode.NumOps]genFn

func init() { // filled here because the functions refer to the table
	set := func(f genFn, ops ...decode.Op) {
		for _, o := range ops {
			generic[o] = f
		}
	}
	set(genALU, decode.ADD, decode.OR, decode.ADC, decode.SBB, decode.AND, decode.SUB, decode.XOR)
	set(genCmp, decode.CMP, decode.TEST)
	set(genUnary, decode.INC, decode.DEC, decode.NEG, decode.NOT)
	set(genMov, decode.MOV)
	set(genMovseg, decode.MOVSEG)
	set(genMovzx, decode.MOVZX, decode.MOVSX, decode.MOVSXD)
	set(genLea, decode.LEA)
	set(genXchg, decode.XCHG)
	set(genXadd, decode.XADD)
	set(genCmpxchg, decode.CMPXCHG)
	set(genCmpxchg8b, decode.CMPXCHG8B)
	set(genBswap, decode.BSWAP)
	set(genMovbe, decode.MOVBE)
	set(genSetcc, decode.SETCC)
	set(genCmovcc, decode.CMOVCC)
	set(genCbw, decode.CBW)
	set(genCwd, decode.CWD)
	set(genNop, decode.NOP)
	set(genPause, decode.PAUSE)
	set(genFlag, decode.CLC, decode.STC, decode.CMC, decode.CLD, decode.STD, decode.LAHF, decode.SAHF, decode.SALC)
	set(genPush, decode.PUSH)
	set(genPop, decode.POP)
	set(genPusha, decode.PUSHA)
	set(genPopa, decode.POPA)
	set(genPushf, decode.PUSHF)
	set(genPopf, decode.POPF)
	set(genEnter, decode.ENTER)
	set(genLeave, decode.LEAVE)
	set(genXlat, decode.XLAT)
	set(genBound, decode.BOUND)
	set(genShift, decode.ROL, decode.ROR, decode.RCL, decode.RCR, decode.SHL, decode.SHR, decode.SAR)
	set(genShld, decode.SHLD, decode.SHRD)
	set(genBt, decode.BT, decode.BTS, decode.BTR, decode.BTC)
	set(genScan, decode.BSF, decode.BSR, decode.TZCNT, decode.LZCNT, decode.POPCNT)
	set(genMul, decode.MUL, decode.IMUL)
	set(genImul, decode.IMUL2, decode.IMUL3)
	set(genDiv, decode.DIV, decode.IDIV)
	set(genDecimal, decode.AAA, decode.AAS, decode.AAM, decode.AAD, decode.DAA, decode.DAS)
	set(genCRC32, decode.CRC32)
	set(genADX, decode.ADCX, decode.ADOX)
	set(genJcc, decode.JCC)
	set(genJmp, decode.JMP)
	set(genLoop, decode.LOOP, decode.LOOPE, decode.LOOPNE, decode.JCXZ)
	set(genCall, decode.CALL)
	set(genIndirect, decode.CALLR, decode.JMPR)
	set(genRet, decode.RET)
	set(genFar, decode.CALLF, decode.JMPF)
	set(genRetf, decode.RETF)
	set(genLoadFar, decode.LES, decode.LDS, decode.LSS, decode.LFS, decode.LGS)
	set(genInt, decode.INT, decode.INT1, decode.INT3, decode.INTO)
	set(genIret, decode.IRET)
	set(genUD, decode.UD0, decode.UD1, decode.UD2)
	set(genRSM, decode.RSM)
	set(genString, decode.MOVSB, decode.MOVSV, decode.STOSB, decode.STOSV, decode.LODSB, decode.LODSV,
		decode.CMPSB, decode.CMPSV, decode.SCASB, decode.SCASV, decode.INSB, decode.INSV, decode.OUTSB, decode.OUTSV)
	set(genIn, decode.IN)
	set(genOut, decode.OUT)
	systemOps(set)
	vectorOps(set)
}

func systemOps(set func(genFn, ...decode.Op)) {
	set(genHlt, decode.HLT)
	set(genIF, decode.CLI, decode.STI)
	set(genClts, decode.CLTS)
	set(genSmsw, decode.SMSW, decode.LMSW)
	set(genTable, decode.SGDT, decode.SIDT, decode.LGDT, decode.LIDT)
	set(genSldt, decode.SLDT, decode.STR)
	set(genLldt, decode.LLDT, decode.LTR)
	set(genVerr, decode.VERR, decode.VERW, decode.LAR, decode.LSL)
	set(genArpl, decode.ARPL)
	set(genInvlpg, decode.INVLPG)
	set(genInvpcid, decode.INVPCID)
	set(genCacheOp, decode.INVD, decode.WBINVD, decode.CLFLUSH, decode.CLFLUSHOPT, decode.CLWB)
	set(genCLAC, decode.CLAC, decode.STAC)
	set(genSwapgs, decode.SWAPGS)
	set(genFSGSBase, decode.RDFSBASE, decode.RDGSBASE, decode.WRFSBASE, decode.WRGSBASE)
	set(genSyscall, decode.SYSCALL)
	set(genSysret, decode.SYSRET)
	set(genSysenter, decode.SYSENTER, decode.SYSEXIT)
	set(genRdtsc, decode.RDTSC, decode.RDTSCP)
	set(genRdpid, decode.RDPID)
	set(genRdpmc, decode.RDPMC)
	set(genRandom, decode.RDRAND, decode.RDSEED)
	set(genCpuid, decode.CPUID)
	set(genMSR, decode.RDMSR, decode.WRMSR)
	set(genMonitor, decode.MONITOR, decode.MWAIT)
	set(genVmcall, decode.VMCALL, decode.VMMCALL)
	set(genXgetbv, decode.XGETBV, decode.XSETBV)
}

func vectorOps(set func(genFn, ...decode.Op)) {
	for _, f := range decode.NativeOps() {
		set(genNative, f)
	}
	set(genVecMove, decode.MOVUPS, decode.MOVUPD, decode.MOVSS, decode.MOVSD, decode.MOVLPS, decode.MOVLPD,
		decode.MOVHLPS, decode.MOVHPS, decode.MOVHPD, decode.MOVLHPS, decode.MOVAPS, decode.MOVAPD,
		decode.MOVNTPS, decode.MOVNTPD, decode.MOVDQA, decode.MOVDQU, decode.MOVNTDQ, decode.LDDQU, decode.MOVNTDQA)
	set(genMovd, decode.MOVD, decode.MOVQ, decode.MOVQ2DQ, decode.MOVDQ2Q, decode.MOVNTQ)
	set(genMovnti, decode.MOVNTI)
	set(genExtract, decode.PEXTRB, decode.PEXTRW, decode.PEXTRD, decode.EXTRACTPS)
	set(genInsert, decode.PINSRB, decode.PINSRW, decode.PINSRD)
	set(genPmovmskb, decode.PMOVMSKB)
	set(genMaskmov, decode.MASKMOVQ, decode.MASKMOVDQU)
	set(genMXCSR, decode.LDMXCSR, decode.STMXCSR)
	set(genFence, decode.LFENCE, decode.MFENCE, decode.SFENCE)
	set(genX87, decode.X87)
	set(genFwait, decode.FWAIT)
	set(genEmms, decode.EMMS)
	set(genVex, decode.VEX)
	set(genVzero, decode.VZEROUPPER)
	set(genMaskedMove, decode.VMASKMOV)
	set(genGather, decode.VGATHER)
	set(genXsave, decode.XSAVE, decode.XSAVEOPT, decode.XRSTOR)
	set(genFxsave, decode.FXSAVE, decode.FXRSTOR)
}
