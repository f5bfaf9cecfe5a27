package soft

import (
	"encoding/binary"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// caller calls the function at 0x9000 for ever and stores its result at 0x7000.
const caller = "bf00900000ffd789042500700000f390ebf3"

// function is mov eax, 0; ret.
const function = "b800000000c3"

// TestCrossModifyingCode: one CPU changes an instruction that another one
// executes all the time, and waits each time until it sees the effect (SDM
// vol. 3A §9.1.3). Neither CPU executes a serialising instruction: no change
// may be missed.
func TestCrossModifyingCode(t *testing.T) {
	g := newGuest(t, Config{CPUs: 2})
	g.start(0, 3, 0x8000)
	g.start(1, 3, 0xa000)
	// xor ecx,ecx; L: inc ecx; mov [0x9001],ecx; W: pause; cmp [0x7000],ecx; jne W; cmp ecx,3000; jne L; out 0xf4,al; hlt
	g.put(0x8000, "31c9ffc1890c2501900000f390390c250070000075f581f9b80b000075e4e6f4f4")
	g.put(0x9000, function)
	g.put(0xa000, caller)
	g.run()
}

// TestCrossModifyingLocked is the same with LOCK CMPXCHG as the store.
func TestCrossModifyingLocked(t *testing.T) {
	g := newGuest(t, Config{CPUs: 2})
	g.start(0, 3, 0x8000)
	g.start(1, 3, 0xa000)
	// xor ecx,ecx; L: mov eax,ecx; inc ecx; lock cmpxchg [0x9001],ecx; W: pause; cmp [0x7000],ecx; jne W; cmp ecx,3000; jne L; out 0xf4,al; hlt
	g.put(0x8000, "31c989c8ffc1f00fb10c2501900000f390390c250070000075f581f9b80b000075e0e6f4f4")
	g.put(0x9000, function)
	g.put(0xa000, caller)
	g.run()
}

// TestDeviceWritesCode: a device writes to an instruction that the CPU executes
// all the time.
func TestDeviceWritesCode(t *testing.T) {
	g := newGuest(t, Config{CPUs: 1})
	g.start(0, 3, 0xa000)
	g.put(0x9000, function)
	g.put(0xa000, caller)
	go func() {
		defer g.end()
		ordered, _ := g.mem.OrderedSlice(0x7000, 4)
		for n := uint32(1); n < 2000; n++ {
			b := binary.LittleEndian.AppendUint32(nil, n)
			_ = g.mem.WriteAt(b, mem.GPA(0x9001))
			for start := time.Now(); ordered.LoadUint16(0) != uint16(n); {
				if time.Since(start) > 5*time.Second {
					t.Error("a device's write to code is not seen")
					return
				}
			}
		}
	}()
	g.run()
}

// TestNoticesOverflow: a CPU that does not run gets more notices than its queue
// holds; it drops everything and the others' requests are answered.
func TestNoticesOverflow(t *testing.T) {
	g := newGuest(t, Config{CPUs: 2})
	a, b := g.start(0, 3, 0x8000), g.start(1, 3, 0x9000)
	g.put(0x8000, function)
	if a.lookup() == nil || len(a.pages) == 0 {
		t.Fatal("no block")
	}
	for i := range uint64(maxNotices + 10) {
		a.post(notice{gpa: i << 12 % (2 << 20), kind: noticeTag, from: 1})
	}
	a.takeNotices()
	if len(a.pages) != 0 {
		t.Error("code survives an overflow of notices")
	}
	if atomic.LoadUint32(&b.s.Exit)&exitFlush == 0 || len(b.notices) == 0 {
		t.Error("the other CPU got no answer")
	}
}
