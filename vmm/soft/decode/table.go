package decode

// The opcode table, one line per form:
//
//	map opcode[-last] [/reg] [prefix] [mod] mnemonic [operands] [attributes]
//
// The map is 1 (one byte), 0F, 38 (0F 38) or 3A (0F 3A). /reg selects by
// ModRM.reg, a mod of "m" or "r" by memory or register form, "=XX" by the whole
// ModRM byte. The prefix np, 66, f3 or f2 is mandatory; without one the form
// takes all of them. Forms are tried from top to bottom.
//
// Operands follow the letters of the Intel SDM vol. 2D appendix A, with sizes
// in bytes behind the vector ones (a "u" marks no alignment check):
// E G R M by ModRM, I immediate, J relative, O offset, Z register in the
// opcode, S C D segment, control and debug registers, V W U vector, P Q N MMX,
// A far pointer.
//
// Attributes: i64 invalid in 64-bit mode, o64 only there, d64 operand size
// 64 by default there, f64 fixed 64 there, lock takes LOCK with a memory
// destination, nat is a pure function of its vector operands that the host can
// run.
const table = `
1 06 push ES i64
1 07 pop ES i64
1 0E push CS i64
1 16 push SS i64
1 17 pop SS i64
1 1E push DS i64
1 1F pop DS i64
1 27 daa i64
1 2F das i64
1 37 aaa i64
1 3F aas i64
1 40-47 inc Zv i64
1 48-4F dec Zv i64
1 50-57 push Zv d64
1 58-5F pop Zv d64
1 60 pusha i64
1 61 popa i64
1 62 m bound Gv,M i64
1 63 movsxd Gv,Ed o64
1 63 arpl Ew,Gw i64
1 68 push Iz d64
1 69 imul3 Gv,Ev,Iz
1 6A push Ibs d64
1 6B imul3 Gv,Ev,Ibs
1 6C insb
1 6D insv
1 6E outsb
1 6F outsv
1 70-7F jcc Jb f64
1 80 /0 add Eb,Ib lock
1 80 /1 or Eb,Ib lock
1 80 /2 adc Eb,Ib lock
1 80 /3 sbb Eb,Ib lock
1 80 /4 and Eb,Ib lock
1 80 /5 sub Eb,Ib lock
1 80 /6 xor Eb,Ib lock
1 80 /7 cmp Eb,Ib
1 81 /0 add Ev,Iz lock
1 81 /1 or Ev,Iz lock
1 81 /2 adc Ev,Iz lock
1 81 /3 sbb Ev,Iz lock
1 81 /4 and Ev,Iz lock
1 81 /5 sub Ev,Iz lock
1 81 /6 xor Ev,Iz lock
1 81 /7 cmp Ev,Iz
1 82 /0 add Eb,Ib lock i64
1 82 /1 or Eb,Ib lock i64
1 82 /2 adc Eb,Ib lock i64
1 82 /3 sbb Eb,Ib lock i64
1 82 /4 and Eb,Ib lock i64
1 82 /5 sub Eb,Ib lock i64
1 82 /6 xor Eb,Ib lock i64
1 82 /7 cmp Eb,Ib i64
1 83 /0 add Ev,Ibs lock
1 83 /1 or Ev,Ibs lock
1 83 /2 adc Ev,Ibs lock
1 83 /3 sbb Ev,Ibs lock
1 83 /4 and Ev,Ibs lock
1 83 /5 sub Ev,Ibs lock
1 83 /6 xor Ev,Ibs lock
1 83 /7 cmp Ev,Ibs
1 84 test Eb,Gb
1 85 test Ev,Gv
1 86 xchg Eb,Gb lock
1 87 xchg Ev,Gv lock
1 88 mov Eb,Gb
1 89 mov Ev,Gv
1 8A mov Gb,Eb
1 8B mov Gv,Ev
1 8C r mov Rv,S
1 8C m mov Mw,S
1 8D m lea Gv,M
1 8E movseg S,Ew
1 8F /0 pop Ev d64
1 90 f3 pause
1 90 xchg Zv,rAX
1 91-97 xchg Zv,rAX
1 98 cbw
1 99 cwd
1 9A callf A i64
1 9B fwait
1 9C pushf d64
1 9D popf d64
1 9E sahf
1 9F lahf
1 A0 mov AL,Ob
1 A1 mov rAX,Ov
1 A2 mov Ob,AL
1 A3 mov Ov,rAX
1 A4 movsb
1 A5 movsv
1 A6 cmpsb
1 A7 cmpsv
1 A8 test AL,Ib
1 A9 test rAX,Iz
1 AA stosb
1 AB stosv
1 AC lodsb
1 AD lodsv
1 AE scasb
1 AF scasv
1 B0-B7 mov Zb,Ib
1 B8-BF mov Zv,Iv
1 C0 /0 rol Eb,Ib
1 C0 /1 ror Eb,Ib
1 C0 /2 rcl Eb,Ib
1 C0 /3 rcr Eb,Ib
1 C0 /4 shl Eb,Ib
1 C0 /5 shr Eb,Ib
1 C0 /6 shl Eb,Ib
1 C0 /7 sar Eb,Ib
1 C1 /0 rol Ev,Ib
1 C1 /1 ror Ev,Ib
1 C1 /2 rcl Ev,Ib
1 C1 /3 rcr Ev,Ib
1 C1 /4 shl Ev,Ib
1 C1 /5 shr Ev,Ib
1 C1 /6 shl Ev,Ib
1 C1 /7 sar Ev,Ib
1 C2 ret Iw f64
1 C3 ret f64
1 C4 m les Gv,Mp i64
1 C5 m lds Gv,Mp i64
1 C6 /0 mov Eb,Ib
1 C7 /0 mov Ev,Iz
1 C8 enter Iw,Ib d64
1 C9 leave d64
1 CA retf Iw
1 CB retf
1 CC int3
1 CD int Ib
1 CE into i64
1 CF iret
1 D0 /0 rol Eb,1
1 D0 /1 ror Eb,1
1 D0 /2 rcl Eb,1
1 D0 /3 rcr Eb,1
1 D0 /4 shl Eb,1
1 D0 /5 shr Eb,1
1 D0 /6 shl Eb,1
1 D0 /7 sar Eb,1
1 D1 /0 rol Ev,1
1 D1 /1 ror Ev,1
1 D1 /2 rcl Ev,1
1 D1 /3 rcr Ev,1
1 D1 /4 shl Ev,1
1 D1 /5 shr Ev,1
1 D1 /6 shl Ev,1
1 D1 /7 sar Ev,1
1 D2 /0 rol Eb,CL
1 D2 /1 ror Eb,CL
1 D2 /2 rcl Eb,CL
1 D2 /3 rcr Eb,CL
1 D2 /4 shl Eb,CL
1 D2 /5 shr Eb,CL
1 D2 /6 shl Eb,CL
1 D2 /7 sar Eb,CL
1 D3 /0 rol Ev,CL
1 D3 /1 ror Ev,CL
1 D3 /2 rcl Ev,CL
1 D3 /3 rcr Ev,CL
1 D3 /4 shl Ev,CL
1 D3 /5 shr Ev,CL
1 D3 /6 shl Ev,CL
1 D3 /7 sar Ev,CL
1 D4 aam Ib i64
1 D5 aad Ib i64
1 D6 salc i64
1 D7 xlat
1 D8-DF m x87 M
1 D8-DF r x87
1 E0 loopne Jb f64
1 E1 loope Jb f64
1 E2 loop Jb f64
1 E3 jcxz Jb f64
1 E4 in AL,Ib
1 E5 in eAX,Ib
1 E6 out Ib,AL
1 E7 out Ib,eAX
1 E8 call Jz f64
1 E9 jmp Jz f64
1 EA jmpf A i64
1 EB jmp Jb f64
1 EC in AL,DX
1 ED in eAX,DX
1 EE out DX,AL
1 EF out DX,eAX
1 F1 int1
1 F4 hlt
1 F5 cmc
1 F6 /0 test Eb,Ib
1 F6 /1 test Eb,Ib
1 F6 /2 not Eb lock
1 F6 /3 neg Eb lock
1 F6 /4 mul Eb
1 F6 /5 imul Eb
1 F6 /6 div Eb
1 F6 /7 idiv Eb
1 F7 /0 test Ev,Iz
1 F7 /1 test Ev,Iz
1 F7 /2 not Ev lock
1 F7 /3 neg Ev lock
1 F7 /4 mul Ev
1 F7 /5 imul Ev
1 F7 /6 div Ev
1 F7 /7 idiv Ev
1 F8 clc
1 F9 stc
1 FA cli
1 FB sti
1 FC cld
1 FD std
1 FE /0 inc Eb lock
1 FE /1 dec Eb lock
1 FF /0 inc Ev lock
1 FF /1 dec Ev lock
1 FF /2 callr Ev f64
1 FF /3 m callf Mp
1 FF /4 jmpr Ev f64
1 FF /5 m jmpf Mp
1 FF /6 push Ev d64
0F 00 /0 r sldt Rv
0F 00 /0 m sldt Mw
0F 00 /1 r str Rv
0F 00 /1 m str Mw
0F 00 /2 lldt Ew
0F 00 /3 ltr Ew
0F 00 /4 verr Ew
0F 00 /5 verw Ew
0F 01 /0 m sgdt M
0F 01 /1 m sidt M
0F 01 /2 m lgdt M
0F 01 /3 m lidt M
0F 01 /4 r smsw Rv
0F 01 /4 m smsw Mw
0F 01 /6 lmsw Ew
0F 01 /7 m invlpg M
0F 01 =C1 vmcall
0F 01 =C8 monitor
0F 01 =C9 mwait
0F 01 =CA clac
0F 01 =CB stac
0F 01 =D0 xgetbv
0F 01 =D1 xsetbv
0F 01 =D9 vmmcall
0F 01 =EE rdpkru
0F 01 =EF wrpkru
0F 01 =F8 swapgs o64
0F 01 =F9 rdtscp
0F 02 lar Gv,Ew
0F 03 lsl Gv,Ew
0F 05 syscall
0F 06 clts
0F 07 sysret
0F 08 invd
0F 09 wbinvd
0F 0B ud2
0F 0D m nop M
0F 0D r nop Rv
0F 10 np movups V,W16u
0F 10 66 movupd V,W16u
0F 10 f3 movss V,W4
0F 10 f2 movsd V,W8
0F 11 np movups W16u,V
0F 11 66 movupd W16u,V
0F 11 f3 movss W4,V
0F 11 f2 movsd W8,V
0F 12 np m movlps V,W8
0F 12 np r movhlps V,U
0F 12 66 m movlpd V,W8
0F 12 f3 movsldup V,W16 nat
0F 12 f2 movddup V,W8 nat
0F 13 np m movlps W8,V
0F 13 66 m movlpd W8,V
0F 14 np unpcklps V,W16 nat
0F 14 66 unpcklpd V,W16 nat
0F 15 np unpckhps V,W16 nat
0F 15 66 unpckhpd V,W16 nat
0F 16 np m movhps V,W8
0F 16 np r movlhps V,U
0F 16 66 m movhpd V,W8
0F 16 f3 movshdup V,W16 nat
0F 17 np m movhps W8,V
0F 17 66 m movhpd W8,V
0F 18-1F nop Ev
0F 20 mov Ry,C
0F 21 mov Ry,D
0F 22 mov C,Ry
0F 23 mov D,Ry
0F 28 np movaps V,W16
0F 28 66 movapd V,W16
0F 29 np movaps W16,V
0F 29 66 movapd W16,V
0F 2A np cvtpi2ps V,Q8 nat
0F 2A 66 cvtpi2pd V,Q8 nat
0F 2A f3 cvtsi2ss V,Ey nat
0F 2A f2 cvtsi2sd V,Ey nat
0F 2B np m movntps W16,V
0F 2B 66 m movntpd W16,V
0F 2C np cvttps2pi P,W8 nat
0F 2C 66 cvttpd2pi P,W16 nat
0F 2C f3 cvttss2si Gy,W4 nat
0F 2C f2 cvttsd2si Gy,W8 nat
0F 2D np cvtps2pi P,W8 nat
0F 2D 66 cvtpd2pi P,W16 nat
0F 2D f3 cvtss2si Gy,W4 nat
0F 2D f2 cvtsd2si Gy,W8 nat
0F 2E np ucomiss V,W4 nat flags
0F 2E 66 ucomisd V,W8 nat flags
0F 2F np comiss V,W4 nat flags
0F 2F 66 comisd V,W8 nat flags
0F 30 wrmsr
0F 31 rdtsc
0F 32 rdmsr
0F 33 rdpmc
0F 34 sysenter
0F 35 sysexit
0F 40-4F cmovcc Gv,Ev
0F 50 np r movmskps Gy,U nat
0F 50 66 r movmskpd Gy,U nat
0F 51 np sqrtps V,W16 nat
0F 51 66 sqrtpd V,W16 nat
0F 51 f3 sqrtss V,W4 nat
0F 51 f2 sqrtsd V,W8 nat
0F 52 np rsqrtps V,W16 nat
0F 52 f3 rsqrtss V,W4 nat
0F 53 np rcpps V,W16 nat
0F 53 f3 rcpss V,W4 nat
0F 54 np andps V,W16 nat
0F 54 66 andpd V,W16 nat
0F 55 np andnps V,W16 nat
0F 55 66 andnpd V,W16 nat
0F 56 np orps V,W16 nat
0F 56 66 orpd V,W16 nat
0F 57 np xorps V,W16 nat
0F 57 66 xorpd V,W16 nat
0F 58 np addps V,W16 nat
0F 58 66 addpd V,W16 nat
0F 58 f3 addss V,W4 nat
0F 58 f2 addsd V,W8 nat
0F 59 np mulps V,W16 nat
0F 59 66 mulpd V,W16 nat
0F 59 f3 mulss V,W4 nat
0F 59 f2 mulsd V,W8 nat
0F 5A np cvtps2pd V,W8 nat
0F 5A 66 cvtpd2ps V,W16 nat
0F 5A f3 cvtss2sd V,W4 nat
0F 5A f2 cvtsd2ss V,W8 nat
0F 5B np cvtdq2ps V,W16 nat
0F 5B 66 cvtps2dq V,W16 nat
0F 5B f3 cvttps2dq V,W16 nat
0F 5C np subps V,W16 nat
0F 5C 66 subpd V,W16 nat
0F 5C f3 subss V,W4 nat
0F 5C f2 subsd V,W8 nat
0F 5D np minps V,W16 nat
0F 5D 66 minpd V,W16 nat
0F 5D f3 minss V,W4 nat
0F 5D f2 minsd V,W8 nat
0F 5E np divps V,W16 nat
0F 5E 66 divpd V,W16 nat
0F 5E f3 divss V,W4 nat
0F 5E f2 divsd V,W8 nat
0F 5F np maxps V,W16 nat
0F 5F 66 maxpd V,W16 nat
0F 5F f3 maxss V,W4 nat
0F 5F f2 maxsd V,W8 nat
0F 60 np punpcklbw P,Q4 nat
0F 60 66 punpcklbw V,W16 nat
0F 61 np punpcklwd P,Q4 nat
0F 61 66 punpcklwd V,W16 nat
0F 62 np punpckldq P,Q4 nat
0F 62 66 punpckldq V,W16 nat
0F 63 packsswb mmx
0F 64 pcmpgtb mmx
0F 65 pcmpgtw mmx
0F 66 pcmpgtd mmx
0F 67 packuswb mmx
0F 68 punpckhbw mmx
0F 69 punpckhwd mmx
0F 6A punpckhdq mmx
0F 6B packssdw mmx
0F 6C 66 punpcklqdq V,W16 nat
0F 6D 66 punpckhqdq V,W16 nat
0F 6E np movd P,Ey
0F 6E 66 movd V,Ey
0F 6F np movq P,Q8
0F 6F 66 movdqa V,W16
0F 6F f3 movdqu V,W16u
0F 70 np pshufw P,Q8,Ib nat
0F 70 66 pshufd V,W16,Ib nat
0F 70 f3 pshufhw V,W16,Ib nat
0F 70 f2 pshuflw V,W16,Ib nat
0F 71 /2 np r psrlw N,Ib nat
0F 71 /2 66 r psrlw U,Ib nat
0F 71 /4 np r psraw N,Ib nat
0F 71 /4 66 r psraw U,Ib nat
0F 71 /6 np r psllw N,Ib nat
0F 71 /6 66 r psllw U,Ib nat
0F 72 /2 np r psrld N,Ib nat
0F 72 /2 66 r psrld U,Ib nat
0F 72 /4 np r psrad N,Ib nat
0F 72 /4 66 r psrad U,Ib nat
0F 72 /6 np r pslld N,Ib nat
0F 72 /6 66 r pslld U,Ib nat
0F 73 /2 np r psrlq N,Ib nat
0F 73 /2 66 r psrlq U,Ib nat
0F 73 /3 66 r psrldq U,Ib nat
0F 73 /6 np r psllq N,Ib nat
0F 73 /6 66 r psllq U,Ib nat
0F 73 /7 66 r pslldq U,Ib nat
0F 74 pcmpeqb mmx
0F 75 pcmpeqw mmx
0F 76 pcmpeqd mmx
0F 77 np emms
0F 7C 66 haddpd V,W16 nat
0F 7C f2 haddps V,W16 nat
0F 7D 66 hsubpd V,W16 nat
0F 7D f2 hsubps V,W16 nat
0F 7E np movd Ey,P
0F 7E 66 movd Ey,V
0F 7E f3 movq V,W8
0F 7F np movq Q8,P
0F 7F 66 movdqa W16,V
0F 7F f3 movdqu W16u,V
0F 80-8F jcc Jz f64
0F 90-9F setcc Eb
0F A0 push FS d64
0F A1 pop FS d64
0F A2 cpuid
0F A3 bt Ev,Gv
0F A4 shld Ev,Gv,Ib
0F A5 shld Ev,Gv,CL
0F A8 push GS d64
0F A9 pop GS d64
0F AA rsm
0F AB bts Ev,Gv lock
0F AC shrd Ev,Gv,Ib
0F AD shrd Ev,Gv,CL
0F AE /0 np m fxsave M
0F AE /1 np m fxrstor M
0F AE /2 np m ldmxcsr Md
0F AE /3 np m stmxcsr Md
0F AE /4 np m xsave M
0F AE /5 np m xrstor M
0F AE /6 np m xsaveopt M
0F AE /6 66 m clwb M
0F AE /7 np m clflush M
0F AE /7 66 m clflushopt M
0F AE /5 np r lfence
0F AE /6 np r mfence
0F AE /7 np r sfence
0F AE /0 f3 r rdfsbase Ry o64
0F AE /1 f3 r rdgsbase Ry o64
0F AE /2 f3 r wrfsbase Ry o64
0F AE /3 f3 r wrgsbase Ry o64
0F AF imul2 Gv,Ev
0F B0 cmpxchg Eb,Gb lock
0F B1 cmpxchg Ev,Gv lock
0F B2 m lss Gv,Mp
0F B3 btr Ev,Gv lock
0F B4 m lfs Gv,Mp
0F B5 m lgs Gv,Mp
0F B6 movzx Gv,Eb
0F B7 movzx Gv,Ew
0F B8 f3 popcnt Gv,Ev
0F B9 ud1 Gv,Ev
0F BA /4 bt Ev,Ib
0F BA /5 bts Ev,Ib lock
0F BA /6 btr Ev,Ib lock
0F BA /7 btc Ev,Ib lock
0F BB btc Ev,Gv lock
0F BC f3 tzcnt Gv,Ev
0F BC bsf Gv,Ev
0F BD f3 lzcnt Gv,Ev
0F BD bsr Gv,Ev
0F BE movsx Gv,Eb
0F BF movsx Gv,Ew
0F C0 xadd Eb,Gb lock
0F C1 xadd Ev,Gv lock
0F C2 np cmpps V,W16,Ib nat
0F C2 66 cmppd V,W16,Ib nat
0F C2 f3 cmpss V,W4,Ib nat
0F C2 f2 cmpsd V,W8,Ib nat
0F C3 np m movnti My,Gy
0F C4 np r pinsrw P,Rd,Ib
0F C4 np m pinsrw P,Mw,Ib
0F C4 66 r pinsrw V,Rd,Ib
0F C4 66 m pinsrw V,Mw,Ib
0F C5 np r pextrw Gd,N,Ib
0F C5 66 r pextrw Gd,U,Ib
0F C6 np shufps V,W16,Ib nat
0F C6 66 shufpd V,W16,Ib nat
0F C7 /1 m cmpxchg8b M lock
0F C7 /3 np m xrstors M
0F C7 /4 np m xsavec M
0F C7 /5 np m xsaves M
0F C7 /7 f3 r rdpid Rd
0F C7 /6 r rdrand Rv
0F C7 /7 r rdseed Rv
0F C8-CF bswap Zv
0F D0 66 addsubpd V,W16 nat
0F D0 f2 addsubps V,W16 nat
0F D1 psrlw mmx
0F D2 psrld mmx
0F D3 psrlq mmx
0F D4 paddq mmx
0F D5 pmullw mmx
0F D6 66 movq W8,V
0F D6 f3 r movq2dq V,N
0F D6 f2 r movdq2q P,U
0F D7 np r pmovmskb Gd,N
0F D7 66 r pmovmskb Gd,U
0F D8 psubusb mmx
0F D9 psubusw mmx
0F DA pminub mmx
0F DB pand mmx
0F DC paddusb mmx
0F DD paddusw mmx
0F DE pmaxub mmx
0F DF pandn mmx
0F E0 pavgb mmx
0F E1 psraw mmx
0F E2 psrad mmx
0F E3 pavgw mmx
0F E4 pmulhuw mmx
0F E5 pmulhw mmx
0F E6 66 cvttpd2dq V,W16 nat
0F E6 f3 cvtdq2pd V,W8 nat
0F E6 f2 cvtpd2dq V,W16 nat
0F E7 np m movntq Q8,P
0F E7 66 m movntdq W16,V
0F E8 psubsb mmx
0F E9 psubsw mmx
0F EA pminsw mmx
0F EB por mmx
0F EC paddsb mmx
0F ED paddsw mmx
0F EE pmaxsw mmx
0F EF pxor mmx
0F F0 f2 m lddqu V,W16u
0F F1 psllw mmx
0F F2 pslld mmx
0F F3 psllq mmx
0F F4 pmuludq mmx
0F F5 pmaddwd mmx
0F F6 psadbw mmx
0F F7 np r maskmovq P,N
0F F7 66 r maskmovdqu V,U
0F F8 psubb mmx
0F F9 psubw mmx
0F FA psubd mmx
0F FB psubq mmx
0F FC paddb mmx
0F FD paddw mmx
0F FE paddd mmx
0F FF ud0 Gv,Ev
38 00 pshufb mmx
38 01 phaddw mmx
38 02 phaddd mmx
38 03 phaddsw mmx
38 04 pmaddubsw mmx
38 05 phsubw mmx
38 06 phsubd mmx
38 07 phsubsw mmx
38 08 psignb mmx
38 09 psignw mmx
38 0A psignd mmx
38 0B pmulhrsw mmx
38 10 66 pblendvb V,W16 nat xmm0
38 14 66 blendvps V,W16 nat xmm0
38 15 66 blendvpd V,W16 nat xmm0
38 17 66 ptest V,W16 nat flags
38 1C pabsb mmx
38 1D pabsw mmx
38 1E pabsd mmx
38 20 66 pmovsxbw V,W8 nat
38 21 66 pmovsxbd V,W4 nat
38 22 66 pmovsxbq V,W2 nat
38 23 66 pmovsxwd V,W8 nat
38 24 66 pmovsxwq V,W4 nat
38 25 66 pmovsxdq V,W8 nat
38 28 66 pmuldq V,W16 nat
38 29 66 pcmpeqq V,W16 nat
38 2A 66 m movntdqa V,W16
38 2B 66 packusdw V,W16 nat
38 30 66 pmovzxbw V,W8 nat
38 31 66 pmovzxbd V,W4 nat
38 32 66 pmovzxbq V,W2 nat
38 33 66 pmovzxwd V,W8 nat
38 34 66 pmovzxwq V,W4 nat
38 35 66 pmovzxdq V,W8 nat
38 37 66 pcmpgtq V,W16 nat
38 38 66 pminsb V,W16 nat
38 39 66 pminsd V,W16 nat
38 3A 66 pminuw V,W16 nat
38 3B 66 pminud V,W16 nat
38 3C 66 pmaxsb V,W16 nat
38 3D 66 pmaxsd V,W16 nat
38 3E 66 pmaxuw V,W16 nat
38 3F 66 pmaxud V,W16 nat
38 40 66 pmulld V,W16 nat
38 41 66 phminposuw V,W16 nat
38 82 66 m invpcid Gq,M
38 C8 np sha1nexte V,W16 nat
38 C9 np sha1msg1 V,W16 nat
38 CA np sha1msg2 V,W16 nat
38 CB np sha256rnds2 V,W16 nat xmm0
38 CC np sha256msg1 V,W16 nat
38 CD np sha256msg2 V,W16 nat
38 DB 66 aesimc V,W16 nat
38 DC 66 aesenc V,W16 nat
38 DD 66 aesenclast V,W16 nat
38 DE 66 aesdec V,W16 nat
38 DF 66 aesdeclast V,W16 nat
38 F0 f2 crc32 Gd,Eb
38 F1 f2 crc32 Gd,Ev
38 F0 np m movbe Gv,Mv
38 F0 66 m movbe Gv,Mv
38 F1 np m movbe Mv,Gv
38 F1 66 m movbe Mv,Gv
38 F6 66 adcx Gy,Ey
38 F6 f3 adox Gy,Ey
3A 08 66 roundps V,W16,Ib nat
3A 09 66 roundpd V,W16,Ib nat
3A 0A 66 roundss V,W4,Ib nat
3A 0B 66 roundsd V,W8,Ib nat
3A 0C 66 blendps V,W16,Ib nat
3A 0D 66 blendpd V,W16,Ib nat
3A 0E 66 pblendw V,W16,Ib nat
3A 0F np palignr P,Q8,Ib nat
3A 0F 66 palignr V,W16,Ib nat
3A 14 66 r pextrb Rd,V,Ib
3A 14 66 m pextrb Mb,V,Ib
3A 15 66 r pextrw Rd,V,Ib
3A 15 66 m pextrw Mw,V,Ib
3A 16 66 pextrd Ey,V,Ib
3A 17 66 r extractps Rd,V,Ib
3A 17 66 m extractps Md,V,Ib
3A 20 66 r pinsrb V,Rd,Ib
3A 20 66 m pinsrb V,Mb,Ib
3A 21 66 insertps V,W4,Ib nat
3A 22 66 pinsrd V,Ey,Ib
3A 40 66 dpps V,W16,Ib nat
3A 41 66 dppd V,W16,Ib nat
3A 42 66 mpsadbw V,W16,Ib nat
3A 44 66 pclmulqdq V,W16,Ib nat
3A 60 66 pcmpestrm V,W16u,Ib nat str
3A 61 66 pcmpestri V,W16u,Ib nat str
3A 62 66 pcmpistrm V,W16u,Ib nat str
3A 63 66 pcmpistri V,W16u,Ib nat str
3A CC np sha1rnds4 V,W16,Ib nat
3A DF 66 aeskeygenassist V,W16,Ib nat
`
