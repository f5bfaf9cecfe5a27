package soft

import (
	"math/bits"

	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

func bswap64(v uint64) uint64 { return bits.ReverseBytes64(v) }

// shift computes the rotates and shifts (SDM vol. 2B) and sets the flags. n is
// the masked count and not zero; a is zero-extended.
func (s *State) shift(op decode.Op, a uint64, n uint, size uint8) uint64 {
	w := 8 * uint(size)
	top := uint64(1) << (w - 1)
	bit := func(v uint64, i uint) uint64 { return v >> (i & 63) & 1 }
	var r, cf, of uint64
	switch op {
	case decode.SHL:
		if n <= w {
			cf = bit(a, w-n)
		}
		r = zeroExtend(a<<n, size)
		of = r>>(w-1) ^ cf
	case decode.SHR:
		cf = 0
		if n <= w {
			cf = bit(a, n-1)
		}
		r = a >> n
		of = a >> (w - 1) // as for a count of 1
		if n > 1 {
			of = (r ^ r<<1) >> (w - 1) & 1
		}
	case decode.SAR:
		x := int64(signExtend(a, size))
		cf = uint64(x>>min(n-1, 63)) & 1
		r = zeroExtend(uint64(x>>n), size)
	case decode.ROL:
		k := n % w
		r = zeroExtend(a<<k|a>>(w-k), size)
		s.setCF(r & 1)
		s.setOF(r>>(w-1) ^ r&1)
		return r
	case decode.ROR:
		k := n % w
		r = zeroExtend(a>>k|a<<(w-k), size)
		s.setCF(r >> (w - 1))
		s.setOF((r ^ r<<1) & top >> (w - 1))
		return r
	case decode.RCL:
		cf = s.cf()
		for range n % (w + 1) {
			out := a >> (w - 1)
			a = zeroExtend(a<<1|cf, size)
			cf = out
		}
		s.setCF(cf)
		s.setOF(a>>(w-1) ^ cf)
		return a
	case decode.RCR:
		cf = s.cf()
		for range n % (w + 1) {
			out := a & 1
			a = a>>1 | cf<<(w-1)
			cf = out
		}
		s.setCF(cf)
		s.setOF((a ^ a<<1) & top >> (w - 1))
		return a
	}
	s.FRes = signExtend(r, size)
	s.FAux = cf<<63 | (cf^of)<<62
	return r
}

func genShift(c *CPU, in *decode.Inst) int {
	size := in.Args[0].Size
	n, _ := c.get(in, 1)
	n &= 31
	if size == 8 {
		m, _ := c.get(in, 1)
		n = m & 63
	}
	if n == 0 {
		if in.Args[0].Kind == decode.KMem { // still an access, with a write's rights
			return c.modify(in, false, func(a uint64) uint64 { return a })
		}
		c.setReg(in.Args[0], c.reg(in.Args[0])) // clears the upper half
		return stNext
	}
	s := c.s
	res, aux := s.FRes, s.FAux
	return c.modify(in, false, func(a uint64) uint64 {
		s.FRes, s.FAux = res, aux
		return s.shift(in.Op, a, uint(n), size)
	})
}

// genShld is SHLD and SHRD (SDM vol. 2B).
func genShld(c *CPU, in *decode.Inst) int {
	size := in.Args[0].Size
	w := 8 * uint(size)
	n64, b := c.reg(decode.Arg{Kind: decode.KReg, Reg: vcpu.RCX, Size: 1}), c.reg(in.Args[1])
	if in.Args[2].Kind == decode.KImm {
		n64 = in.Imm
	}
	n := uint(n64) & 31
	if size == 8 {
		n = uint(n64) & 63
	}
	s := c.s
	return c.modify(in, false, func(a uint64) uint64 {
		if n == 0 {
			return a
		}
		var r, cf uint64
		k := n
		x, y := a, b
		if k > w { // 16-bit with a count above 16: undefined; processors go on with the source
			k -= w
			x, y = b, a
		}
		if in.Op == decode.SHLD {
			cf = x >> (w - k) & 1
			r = zeroExtend(x<<k|y>>(w-k), size)
		} else {
			cf = x >> (k - 1) & 1
			r = zeroExtend(x>>k|y<<(w-k), size)
		}
		s.FRes = signExtend(r, size)
		of := (r ^ x) >> (w - 1) & 1
		s.FAux = cf<<63 | (cf^of)<<62
		return r
	})
}

// genBt is BT, BTS, BTR and BTC (SDM vol. 2A).
func genBt(c *CPU, in *decode.Inst) int {
	s := c.s
	size := in.Args[0].Size
	n, _ := c.get(in, 1)
	w := uint64(size) * 8
	if a := in.Args[0]; a.Kind == decode.KMem && in.Args[1].Kind == decode.KReg {
		// The bit string extends beyond the operand, in both directions.
		off := uint64(int64(signExtend(n, size)) >> 3 &^ int64(size-1))
		disp := in.Mem.Disp
		moved := *in
		moved.Mem.Disp = disp + int64(off)
		return c.bitOp(&moved, n&(w-1), s)
	}
	return c.bitOp(in, n&(w-1), s)
}

func (c *CPU) bitOp(in *decode.Inst, n uint64, s *State) int {
	if in.Op == decode.BT {
		v, ok := c.get(in, 0)
		if !ok {
			return stFault
		}
		s.setCF(v >> n & 1)
		return stNext
	}
	var cf uint64
	st := c.modify(in, in.Lock, func(a uint64) uint64 {
		cf = a >> n & 1
		switch in.Op {
		case decode.BTS:
			return a | 1<<n
		case decode.BTR:
			return a &^ (1 << n)
		}
		return a ^ 1<<n
	})
	if st == stNext {
		s.setCF(cf)
	}
	return st
}

// genScan is BSF, BSR, TZCNT, LZCNT and POPCNT.
func genScan(c *CPU, in *decode.Inst) int {
	s := c.s
	v, ok := c.get(in, 1)
	if !ok {
		return stFault
	}
	size := in.Args[1].Size
	w := uint64(size) * 8
	op := in.Op
	if op == decode.TZCNT && !c.vm.features.bmi1 {
		op = decode.BSF
	}
	if op == decode.LZCNT && !c.vm.features.lzcnt {
		op = decode.BSR
	}
	var r uint64
	switch op {
	case decode.BSF, decode.BSR:
		s.setZF(v == 0)
		if v == 0 {
			// Left unchanged, as all processors do; a 32-bit form does not
			// clear the upper half then.
			return stNext
		}
		r = uint64(bits.TrailingZeros64(v))
		if op == decode.BSR {
			r = uint64(63 - bits.LeadingZeros64(v))
		}
	case decode.TZCNT:
		r = min(uint64(bits.TrailingZeros64(v)), w)
		s.setArith(boolBit(v == 0) | boolBit(r == 0)<<6)
	case decode.LZCNT:
		r = uint64(bits.LeadingZeros64(v)) - (64 - w)
		s.setArith(boolBit(v == 0) | boolBit(r == 0)<<6)
	case decode.POPCNT:
		r = uint64(bits.OnesCount64(v))
		s.setArith(boolBit(v == 0) << 6)
	}
	c.setReg(in.Args[0], r)
	return stNext
}

func boolBit(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

// genMul is MUL and the one-operand IMUL.
func genMul(c *CPU, in *decode.Inst) int {
	s := c.s
	b, ok := c.get(in, 0)
	if !ok {
		return stFault
	}
	size := in.Args[0].Size
	a := zeroExtend(s.R[0], size)
	var lo, hi uint64
	var over bool
	if in.Op == decode.MUL {
		hi, lo = bits.Mul64(a, b)
		if size < 8 {
			hi = lo >> (8 * uint(size))
		}
		over = zeroExtend(hi, size) != 0
	} else {
		x, y := signExtend(a, size), signExtend(b, size)
		hi, lo = mulSigned(x, y)
		if size < 8 {
			hi = uint64(int64(lo) >> (8 * uint(size)))
		}
		over = signExtend(hi, size) != uint64(int64(signExtend(lo, size))>>63)
	}
	if size == 1 {
		s.R[0] = s.R[0]&^0xffff | hi&0xff<<8 | lo&0xff
	} else {
		c.setReg(decode.Arg{Kind: decode.KReg, Reg: vcpu.RAX, Size: size}, lo)
		c.setReg(decode.Arg{Kind: decode.KReg, Reg: vcpu.RDX, Size: size}, hi)
	}
	s.mulFlags(lo, over, size)
	return stNext
}

// mulFlags sets CF and OF; SF, ZF, AF and PF are undefined.
func (s *State) mulFlags(lo uint64, over bool, size uint8) {
	s.FRes = signExtend(lo, size)
	s.FAux = boolBit(over) << 63 // CF = OF: partial overflow 0
}

func mulSigned(x, y uint64) (hi, lo uint64) {
	hi, lo = bits.Mul64(x, y)
	hi -= uint64(int64(x)>>63)&y + uint64(int64(y)>>63)&x
	return hi, lo
}

// genImul is IMUL with two and three operands.
func genImul(c *CPU, in *decode.Inst) int {
	size := in.Args[0].Size
	i, j := 0, 1
	if in.Op == decode.IMUL3 {
		i, j = 1, 2
	}
	a, ok := c.get(in, i)
	if !ok {
		return stFault
	}
	b, ok := c.get(in, j)
	if !ok {
		return stFault
	}
	hi, lo := mulSigned(signExtend(a, size), signExtend(b, size))
	over := hi != uint64(int64(lo)>>63)
	if size < 8 {
		over = signExtend(lo, size) != lo
	}
	c.setReg(in.Args[0], lo)
	c.s.mulFlags(lo, over, size)
	return stNext
}

// genDiv is DIV and IDIV. The flags are undefined and stay.
func genDiv(c *CPU, in *decode.Inst) int {
	s := c.s
	d, ok := c.get(in, 0)
	if !ok {
		return stFault
	}
	size := in.Args[0].Size
	w := 8 * uint(size)
	if size == 1 {
		a := s.R[0] & 0xffff
		q, r, ok := divide(uint64(0), a, d, in.Op == decode.IDIV, size)
		if !ok {
			return c.raise(vecDE)
		}
		s.R[0] = s.R[0]&^0xffff | r&0xff<<8 | q&0xff
		return stNext
	}
	hi, lo := zeroExtend(s.R[vcpu.RDX], size), zeroExtend(s.R[vcpu.RAX], size)
	if size < 8 {
		hi, lo = 0, hi<<w|lo
	}
	q, r, ok := divide(hi, lo, d, in.Op == decode.IDIV, size)
	if !ok {
		return c.raise(vecDE)
	}
	c.setReg(decode.Arg{Kind: decode.KReg, Reg: vcpu.RAX, Size: size}, q)
	c.setReg(decode.Arg{Kind: decode.KReg, Reg: vcpu.RDX, Size: size}, r)
	return stNext
}

// divide divides the double-width hi:lo (all in lo if size < 8) by d.
func divide(hi, lo, d uint64, signed bool, size uint8) (q, r uint64, ok bool) {
	if d == 0 {
		return 0, 0, false
	}
	if !signed {
		if hi >= d {
			return 0, 0, false
		}
		q, r = bits.Div64(hi, lo, d)
		return q, r, zeroExtend(q, size) == q
	}
	d = signExtend(d, size)
	if size < 8 {
		lo = signExtend(lo, 2*size)
		hi = uint64(int64(lo) >> 63)
	}
	neg, dneg := int64(hi) < 0, int64(d) < 0
	if neg {
		var borrow uint64
		lo, borrow = bits.Sub64(0, lo, 0)
		hi, _ = bits.Sub64(0, hi, borrow)
	}
	if dneg {
		d = -d
	}
	if hi >= d {
		return 0, 0, false
	}
	q, r = bits.Div64(hi, lo, d)
	limit := uint64(1) << (8*uint(size) - 1)
	if neg != dneg {
		if q > limit {
			return 0, 0, false
		}
		q = -q
	} else if q >= limit {
		return 0, 0, false
	}
	if neg {
		r = -r
	}
	return q, r, true
}

// genDecimal is AAA, AAS, AAM, AAD, DAA and DAS (SDM vol. 2A).
func genDecimal(c *CPU, in *decode.Inst) int {
	s := c.s
	al, ah := s.R[0]&0xff, s.R[0]>>8&0xff
	f := s.arith()
	cf, af := f&flagCF, f>>4&1
	set := func(al, ah uint64) { s.R[0] = s.R[0]&^0xffff | ah&0xff<<8 | al&0xff }
	switch in.Op {
	case decode.AAM:
		if in.Imm == 0 {
			return c.raise(vecDE)
		}
		set(al%in.Imm, al/in.Imm)
		s.flagsLogic(s.R[0]&0xff, 1)
		return stNext
	case decode.AAD:
		set(al+ah*in.Imm, 0)
		s.flagsLogic(s.R[0]&0xff, 1)
		return stNext
	case decode.AAA, decode.AAS:
		ax := s.R[0] & 0xffff
		if al&15 > 9 || af != 0 {
			if in.Op == decode.AAA {
				ax += 0x106
			} else {
				ax -= 0x106
			}
			af, cf = 1, 1
		} else {
			af, cf = 0, 0
		}
		s.R[0] = s.R[0]&^0xffff | ax&0xff0f
	default:
		old, oldCF := al, cf
		sign := uint64(1)
		if in.Op == decode.DAS {
			sign = ^uint64(0)
		}
		cf = 0
		if al&15 > 9 || af != 0 {
			n := al + 6*sign
			cf = oldCF | n>>8&1
			al, af = n&0xff, 1
		} else {
			af = 0
		}
		if old > 0x99 || oldCF != 0 {
			al, cf = (al+0x60*sign)&0xff, 1
		}
		set(al, ah)
	}
	s.flagsLogic(s.R[0]&0xff, 1)
	s.setArith(s.arith()&^uint64(flagCF|flagAF) | cf | af<<4)
	return stNext
}

var crcTable = func() (t [256]uint32) {
	for i := range t {
		v := uint32(i)
		for range 8 {
			v = v>>1 ^ 0x82f63b78&-(v&1)
		}
		t[i] = v
	}
	return t
}()

// genCRC32 is CRC32 with the Castagnoli polynomial.
func genCRC32(c *CPU, in *decode.Inst) int {
	v, ok := c.get(in, 1)
	if !ok {
		return stFault
	}
	crc := uint32(c.reg(in.Args[0]))
	for i := uint8(0); i < in.Args[1].Size; i++ {
		crc = crc>>8 ^ crcTable[uint8(crc)^uint8(v>>(8*i))]
	}
	c.setReg(decode.Arg{Kind: decode.KReg, Reg: in.Args[0].Reg, Size: 4}, uint64(crc))
	return stNext
}

// genADX is ADCX and ADOX.
func genADX(c *CPU, in *decode.Inst) int {
	s := c.s
	b, ok := c.get(in, 1)
	if !ok {
		return stFault
	}
	a, size := c.reg(in.Args[0]), in.Args[0].Size
	carry := s.cf()
	if in.Op == decode.ADOX {
		carry = s.of()
	}
	var out, r uint64
	if size == 8 {
		r, out = bits.Add64(a, b, carry)
	} else {
		r = a + b + carry
		out = r >> 32 & 1
	}
	c.setReg(in.Args[0], r)
	f := s.arith()
	if in.Op == decode.ADOX {
		s.setArith(f&^flagOF | out<<11)
	} else {
		s.setArith(f&^flagCF | out)
	}
	return stNext
}
