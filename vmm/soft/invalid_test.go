package soft

import (
	"fmt"
	"strings"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
)

// TestInvalidLog: an unsupported instruction is logged with its bytes and RIP,
// once an opcode, whatever its operands.
func TestInvalidLog(t *testing.T) {
	var lines []string
	g, c := protectedWith(t, false, Config{CPUs: 1, Log: func(f string, a ...any) { lines = append(lines, fmt.Sprintf(f, a...)) }})
	g.put(atCode, "62f17c4858c1") // EVEX: vaddps zmm
	g.run()
	for _, code := range []string{"62f17c4858c2", "62f17c4859c1"} { // the same, then vmulps zmm
		g.put(atCode, code)
		c.next = atCode
		c.noteInvalid()
	}
	if len(lines) != 2 || !strings.HasPrefix(lines[0], "unsupported instruction 62 f1 7c 48 58 c1") || !strings.Contains(lines[0], fmt.Sprintf("RIP %#x", atCode)) {
		t.Errorf("logged:\n%s", strings.Join(lines, "\n"))
	}
}

func TestOpcodeOf(t *testing.T) {
	for _, tt := range []struct {
		code string
		want opcode
	}{
		{"\x66\x4f\x0f\x38\xf6", opcode{0, 0x38, 0xf6}},
		{"\xf3\x0f\xa7", opcode{0, 0x0f, 0xa7}},
		{"\xc5\xf8\x58", opcode{0xc5, 1, 0x58}},
		{"\xc4\xe2\x78\x50", opcode{0xc4, 2, 0x50}},
		{"\x62\xf1\x7c\x48\x58", opcode{0x62, 1, 0x58}},
		{"\xd6", opcode{0, 0, 0xd6}},
		{"", opcode{}},
		{"\x66\x66", opcode{}},
	} {
		if got := opcodeOf([]byte(tt.code), decode.Mode64); got != tt.want {
			t.Errorf("% x: %v, want %v", tt.code, got, tt.want)
		}
	}
}
