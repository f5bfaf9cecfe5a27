package soft

import "math/bits"

const (
	auxCF = 1 << 63
	auxPO = 1 << 62 // CF xor OF
	auxAF = 1 << 3
	auxSD = 1 << 0 // sign delta
)

// signExtend extends the low size bytes of v.
func signExtend(v uint64, size uint8) uint64 {
	sh := 64 - 8*uint(size)
	return uint64(int64(v<<(sh&63)) >> (sh & 63))
}

// zeroExtend keeps the low size bytes of v.
func zeroExtend(v uint64, size uint8) uint64 {
	sh := 64 - 8*uint(size)
	return v << (sh & 63) >> (sh & 63)
}

// carryAux is FAux for a vector of carries out of each bit.
func carryAux(cout uint64, size uint8) uint64 {
	sh := 64 - 8*uint(size)
	// Bit 63 is the carry out of the top bit, bit 62 the one into it. OF is
	// their exclusive or, so the latter is CF xor OF.
	return cout<<(sh&63)&(auxCF|auxPO) | cout&auxAF
}

func (s *State) flagsAdd(a, b, r uint64, size uint8) {
	s.FRes = signExtend(r, size)
	s.FAux = carryAux(a&b|(a|b)&^r, size)
}

func (s *State) flagsSub(a, b, r uint64, size uint8) {
	s.FRes = signExtend(r, size)
	s.FAux = carryAux(^a&b|(^a|b)&r, size)
}

func (s *State) flagsLogic(r uint64, size uint8) {
	s.FRes = signExtend(r, size)
	s.FAux = 0
}

func (s *State) cf() uint64 { return s.FAux >> 63 }
func (s *State) zf() bool   { return s.FRes == 0 }
func (s *State) sf() uint64 { return s.FRes>>63 ^ s.FAux&1 }
func (s *State) of() uint64 { return (s.FAux>>63 ^ s.FAux>>62) & 1 }
func (s *State) pf() uint64 {
	return uint64(^bits.OnesCount8(uint8(s.FRes)^uint8(s.FAux>>8)) & 1)
}

// arith is the arithmetic flags in RFLAGS format.
func (s *State) arith() uint64 {
	f := s.cf() | s.pf()<<2 | s.FAux>>3&1<<4 | s.sf()<<7 | s.of()<<11
	if s.zf() {
		f |= flagZF
	}
	return f
}

// rflags is the whole register.
func (s *State) rflags() uint64 { return s.Flags | s.arith() | 2 }

// setArith sets the arithmetic flags from RFLAGS format.
func (s *State) setArith(f uint64) {
	cf, of := f&1, f>>11&1
	aux := cf<<63 | (cf^of)<<62 | f>>4&1<<3
	var res uint64
	if f&flagZF == 0 {
		res = 1 // nonzero, positive, odd parity byte 1
	}
	aux |= (res>>63 ^ f>>7&1) & 1
	want := f >> 2 & 1
	have := uint64(^bits.OnesCount8(uint8(res)) & 1)
	aux |= (want ^ have) << 8
	s.FRes, s.FAux = res, aux
}

// setCF changes CF alone. OF must stay, so PO follows.
func (s *State) setCF(cf uint64) {
	if s.cf() != cf {
		s.FAux ^= auxCF | auxPO
	}
}

// setOF changes OF alone.
func (s *State) setOF(of uint64) {
	if s.of() != of {
		s.FAux ^= auxPO
	}
}

// setZF changes ZF alone.
func (s *State) setZF(z bool) {
	if s.zf() != z {
		f := s.arith() ^ flagZF
		s.setArith(f)
	}
}

// cond evaluates a condition code of jcc, setcc and cmovcc (SDM vol. 1 app. B).
func (s *State) cond(cc uint8) bool {
	var v bool
	switch cc >> 1 & 7 {
	case 0:
		v = s.of() != 0
	case 1:
		v = s.cf() != 0
	case 2:
		v = s.zf()
	case 3:
		v = s.cf() != 0 || s.zf()
	case 4:
		v = s.sf() != 0
	case 5:
		v = s.pf() != 0
	case 6:
		v = s.sf() != s.of()
	case 7:
		v = s.zf() || s.sf() != s.of()
	}
	return v != (cc&1 != 0)
}
