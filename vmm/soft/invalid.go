package soft

import (
	"bytes"
	"sync"

	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
)

// invalidLog remembers which unsupported opcodes were logged. There are at most
// maxInvalid of them: a guest can try them all.
type invalidLog struct {
	mu   sync.Mutex // guards seen
	seen map[opcode]bool
}

const maxInvalid = 200

// opcode is an instruction's map and opcode byte, with the byte that begins a
// VEX, EVEX or XOP prefix, or 0.
type opcode struct{ prefix, table, code uint8 }

// noteInvalid logs an unsupported instruction at CPU.next, once an opcode, for
// who looks for a missing feature. It is on the way to #UD.
func (c *CPU) noteInvalid() {
	vm := c.vm
	if vm.log == nil {
		return
	}
	var code []byte
	for i := range uint64(decode.MaxLen) {
		v, ok := c.peek(c.codeAddress(c.next) + i)
		if !ok {
			break
		}
		code = append(code, byte(v))
	}
	if vm.invalid.first(opcodeOf(code, c.mode)) {
		vm.log("unsupported instruction % x at RIP %#x of CPU %d", code, c.next, c.id)
	}
}

// first reports whether o is new.
func (l *invalidLog) first(o opcode) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen[o] || len(l.seen) >= maxInvalid {
		return false
	}
	if l.seen == nil {
		l.seen = map[opcode]bool{}
	}
	l.seen[o] = true
	return true
}

// legacyPrefixes are those of SDM vol. 2A §2.1.1.
var legacyPrefixes = []byte{0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65}

// opcodeOf finds the opcode of code (SDM vol. 2A §2.1 to §2.7), which may end
// early: then missing bytes are 0.
func opcodeOf(code []byte, mode decode.Mode) opcode {
	code = append(bytes.Clone(code), 0, 0, 0, 0, 0)
	for len(code) > 5 && (bytes.IndexByte(legacyPrefixes, code[0]) >= 0 || mode == decode.Mode64 && code[0]&0xf0 == 0x40) {
		code = code[1:]
	}
	switch b := code[0]; {
	case b == 0x0f && (code[1] == 0x38 || code[1] == 0x3a):
		return opcode{0, code[1], code[2]}
	case b == 0x0f:
		return opcode{0, 0x0f, code[1]}
	case b == 0xc5:
		return opcode{b, 1, code[2]}
	case b == 0xc4 || b == 0x8f:
		return opcode{b, code[1] & 31, code[3]}
	case b == 0x62:
		return opcode{b, code[1] & 7, code[4]}
	default:
		return opcode{0, 0, b}
	}
}
