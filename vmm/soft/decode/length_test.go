package decode

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"golang.org/x/arch/x86/x86asm"
)

// TestLengths compares the lengths of random instructions with x86asm's.
func TestLengths(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	both, differ := 0, 0
	unknown := map[x86asm.Op]string{}
	for both < 200_000 {
		var b [MaxLen]byte
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		if rng.IntN(3) == 0 {
			b[0] = 0x0f
		}
		mode := []Mode{Mode16, Mode32, Mode64}[rng.IntN(3)]
		var in Inst
		bad := Decode(&in, b[:], mode)
		if in.Lock || in.Map == 1 && in.Opcode&^3 == 0x20 { // x86asm takes LOCK everywhere, and mod of MOV CR for an address
			continue
		}
		ref, err := x86asm.Decode(b[:], int(mode)*8)
		if err != nil || ref.Op == 0 {
			continue
		}
		if bad != nil {
			if unknown[ref.Op] == "" {
				unknown[ref.Op] = fmt.Sprintf("mode %d % x %v", mode*8, b[:ref.Len], ref)
			}
			continue
		}
		both++
		if ref.Len != int(in.Len) {
			if differ++; differ < 20 {
				t.Errorf("mode %d: % x: %v %d bytes, x86asm: %v %d bytes", mode*8, b[:max(int(in.Len), ref.Len)], in.Op, in.Len, ref.Op, ref.Len)
			}
		}
	}
	for _, s := range unknown {
		t.Log("not decoded: ", s)
	}
}
