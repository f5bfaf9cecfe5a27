package soft

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
)

// fillX87 makes a random x87 state with all exceptions masked. Values are of
// every kind, unnormal ones too.
func (st *userState) fillX87(rng *rand.Rand) {
	st.fx[0], st.fx[1] = 0x7f, byte(rng.IntN(16))&^0xf0 // precision and rounding
	st.fx[2], st.fx[3] = 0, byte(rng.IntN(8))<<3        // TOP
	tags := rng.Uint32()
	st.fx[4] = byte(tags) | byte(tags>>8) // which registers are in use
	for i := range 8 {
		r := st.fx[32+16*i:][:10]
		for j := range r {
			r[j] = byte(rng.Uint32())
		}
		switch rng.IntN(4) {
		case 0: // near one
			r[7], r[8], r[9] = r[7]|0x80, byte(rng.IntN(8)), r[9]&0x80|0x40
		case 1: // a small integer
			copy(r, []byte{0, 0, 0, 0, 0, 0, 0, 0x80 | r[7], 0, 0x40})
		case 2:
			r[7] |= 0x80
		}
	}
}

// x87Differs compares the states but for the addresses of the last instruction.
func x87Differs(a, b *userState) string {
	for _, part := range [][2]int{{0, 6}, {24, 28}, {32, 160}} {
		x, y := a.fx[part[0]:part[1]], b.fx[part[0]:part[1]]
		if part[0] == 32 { // the bytes behind each register are reserved
			for i := range 8 {
				if !bytes.Equal(x[16*i:16*i+10], y[16*i:16*i+10]) {
					return fmt.Sprintf("ST%d native % x, interpreted % x", i, x[16*i:16*i+10], y[16*i:16*i+10])
				}
			}
		} else if !bytes.Equal(x, y) {
			return fmt.Sprintf("bytes %d native % x, interpreted % x", part[0], x, y)
		}
	}
	return ""
}

// x87Trouble reports forms that unmask exceptions or store addresses.
func x87Trouble(in *decode.Inst) bool {
	reg := in.ModRM >> 3 & 7
	switch {
	case !in.MemMod():
		return false
	case in.Opcode == 0xd9:
		return reg >= 4 && reg <= 6
	case in.Opcode == 0xdd:
		return reg == 4 || reg == 6
	}
	return false
}

// runOracle compares up to cases instructions that next makes.
func runOracle(t *testing.T, cases int, next func(o *oracle, st *userState, b []byte) (decode.Inst, bool)) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	o := newOracle(t)
	var init, a, b userState
	failed := map[string]int{}
	for n := 0; n < cases; {
		var buf [20]byte
		in, ok := next(o, &init, buf[:])
		if !ok {
			continue
		}
		n++
		code := buf[:in.Len]
		a, b = init, init
		fine := o.interp(code, &b)
		if !fine && o.c.exc.vec == vecUD {
			continue // the host would raise it, too
		}
		o.native(code, &a)
		name := fmt.Sprintf("%v %02x /%d %v", in.Op, in.Opcode, in.RegField(), in.MemMod())
		d := ""
		if fine {
			if d = diff(&in, &a, &b, 0); d == "" {
				d = x87Differs(&a, &b)
			}
		} else {
			d = fmt.Sprintf("interpreter faults with %+v", o.c.exc)
		}
		if d != "" {
			if failed[name]++; failed[name] < 3 {
				t.Errorf("%s % x: %s", name, code, d)
			}
		}
	}
}

// TestOracleX87 compares x87 instructions with the host's.
func TestOracleX87(t *testing.T) {
	rng := rand.New(rand.NewPCG(8, 7))
	runOracle(t, oracleCases()/8, func(o *oracle, st *userState, b []byte) (in decode.Inst, ok bool) {
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		b[0] = 0xd8 | byte(rng.IntN(8))
		if decode.Decode(&in, b[:15], decode.Mode64) != nil || x87Trouble(&in) {
			return in, false
		}
		st.fill(rng)
		st.fillX87(rng)
		return in, placeX87(&in, st, b, rng)
	})
}

// placeX87 is place for instructions whose memory operand has no size.
func placeX87(in *decode.Inst, st *userState, code []byte, rng *rand.Rand) bool {
	if !in.MemMod() {
		return true
	}
	in.Args[0] = decode.Arg{Kind: decode.KMem, Size: 10, Unaligned: true}
	return place(in, st, code, rng)
}

// TestOracleMMX compares MMX instructions with the host's.
func TestOracleMMX(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 7))
	runOracle(t, oracleCases()/8, func(o *oracle, st *userState, b []byte) (in decode.Inst, ok bool) {
		randomCode(rng, b)
		if decode.Decode(&in, b[:15], decode.Mode64) != nil {
			return in, false
		}
		mmx := in.Op == decode.EMMS
		args := in.Args
		for i, a := range in.Args {
			if a.Kind == decode.KMMX {
				mmx = true
				in.Args[i] = decode.Arg{}
			}
		}
		ok = mmx && oracleOK(&in)
		in.Args = args
		if !ok {
			return in, false
		}
		st.fill(rng)
		st.fillX87(rng)
		return in, place(&in, st, b, rng)
	})
}

// TestOracleDivide compares DIV and IDIV with the host's, where they do not fault.
func TestOracleDivide(t *testing.T) {
	rng := rand.New(rand.NewPCG(10, 7))
	runOracle(t, oracleCases()/8, func(o *oracle, st *userState, b []byte) (in decode.Inst, ok bool) {
		randomCode(rng, b)
		at := 0
		for at < 2 && (b[at] == 0x66 || b[at]&0xf0 == 0x40) {
			at++
		}
		b[at] = 0xf6 | byte(rng.IntN(2))
		b[at+1] |= 0x30 // /6 or /7
		if decode.Decode(&in, b[:15], decode.Mode64) != nil || in.Op != decode.DIV && in.Op != decode.IDIV {
			return in, false
		}
		st.fill(rng)
		a := in.Args[0]
		st.gpr[2] = 0
		if in.Op == decode.IDIV {
			st.gpr[2] = uint64(int64(signExtend(st.gpr[0], a.Size)) >> 63)
		}
		if a.Size == 1 {
			st.gpr[0] = st.gpr[0]&^0xff00 | st.gpr[2]&0xff<<8
		}
		if a.Kind == decode.KReg && a.Reg == 4 || !place(&in, st, b, rng) {
			return in, false
		}
		return in, divisorFits(&in, st)
	})
}

// divisorFits reports whether the quotient exists.
func divisorFits(in *decode.Inst, st *userState) bool {
	a := in.Args[0]
	m := &in.Mem
	if a.Kind == decode.KMem && (m.Base == 0 || m.Base == 2 || m.Index == 0 || m.Index == 2) {
		return false // place has changed the dividend
	}
	var v uint64
	switch a.Kind {
	case decode.KMem:
		ea := st.gpr[m.Base] + uint64(m.Disp)
		if m.Index != decode.RegNone {
			ea += st.gpr[m.Index] << m.Scale
		}
		for i := range int(a.Size) {
			v |= uint64(st.data[int(ea-(oracleData-dataWindow))+i]) << (8 * i)
		}
	case decode.KRegH:
		v = st.gpr[a.Reg] >> 8 & 0xff
	default:
		v = zeroExtend(st.gpr[a.Reg], a.Size)
	}
	return v != 0 && (in.Op == decode.DIV || v != ipMask(a.Size))
}
