package serial

import (
	"bytes"
	"io"
	"testing"
	"time"
)

type line struct{ level bool }

func (l *line) Set(v bool) { l.level = v }

// host is a sink with a limit.
type host struct {
	got  []byte
	room int
}

func (h *host) Put(b byte) bool {
	if h.room == 0 {
		return false
	}
	h.room--
	h.got = append(h.got, b)
	return true
}

type rig struct {
	*UART
	line  line
	host  host
	asked int
}

func newRig() *rig {
	r := &rig{host: host{room: 1 << 20}}
	r.UART = New(&r.line, &r.host, func() { r.asked++ })
	return r
}

func (r *rig) in(reg uint64) uint8     { return uint8(r.Read(reg, 1)) }
func (r *rig) out(reg uint64, v uint8) { r.Write(reg, 1, uint64(v)) }

// start sets FIFOs on, OUT2, and the interrupts in ier.
func (r *rig) start(ier uint8) *rig {
	r.out(regMCR, 0x0b)
	r.out(regIIR, 0x07)
	r.out(regIER, ier)
	return r
}

// TestReset: table I.
func TestReset(t *testing.T) {
	r := newRig()
	for reg, want := range map[uint64]uint8{regIER: 0, regIIR: 1, regLCR: 0, regMCR: 0, regLSR: 0x60, regMSR: 0xb0} {
		if got := r.in(reg); got != want {
			t.Errorf("register %d: %#x, want %#x", reg, got, want)
		}
	}
}

// TestDLAB: §8.3 bit 7, the divisor hides data and IER; divisor 0 is harmless.
func TestDLAB(t *testing.T) {
	r := newRig()
	r.out(regLCR, 0x83)
	r.out(regData, 0)
	r.out(regIER, 0)
	if r.in(regData) != 0 || r.in(regIER) != 0 {
		t.Error("divisor is not 0")
	}
	r.out(regData, 0x34)
	r.out(regIER, 0x12)
	if r.in(regData) != 0x34 || r.in(regIER) != 0x12 {
		t.Error("divisor reads back wrong")
	}
	r.out(regLCR, 3)
	if r.in(regIER) != 0 || len(r.host.got) != 0 {
		t.Error("divisor bytes reached IER or the wire")
	}
}

func TestOutput(t *testing.T) {
	r := newRig()
	for _, b := range []byte("hello") {
		if r.in(regLSR)&0x20 == 0 {
			t.Fatal("THRE off")
		}
		r.out(regData, b)
	}
	if string(r.host.got) != "hello" {
		t.Errorf("got %q", r.host.got)
	}
}

// TestSlowHost: the host's refusal holds THRE off, keeps at most 16 bytes, and
// nothing is lost for a guest that looks at THRE.
func TestSlowHost(t *testing.T) {
	r := newRig().start(0x02)
	r.in(regIIR) // takes the first THRE interrupt
	r.host.room = 1
	r.out(regData, 'a')
	if !r.line.level || r.in(regIIR)&0xf != 2 {
		t.Error("no THRE interrupt after a byte that went out")
	}
	r.out(regData, 'b')
	if r.in(regLSR)&0x60 != 0 || r.line.level {
		t.Error("THRE or its interrupt on while the host refuses")
	}
	for range 1000 { // a guest that ignores THRE
		r.out(regData, 'c')
	}
	r.host.room = 1 << 20
	r.Flush()
	if string(r.host.got) != "ab"+string(bytes.Repeat([]byte{'c'}, 15)) {
		t.Errorf("got %q", r.host.got)
	}
	if r.in(regLSR)&0x60 != 0x60 || !r.line.level || r.in(regIIR)&0xf != 2 {
		t.Error("no THRE after Flush")
	}
}

// TestTHREInterrupt: table IV, reset by reading IIR or writing THR; §8.6,
// raised by enabling it while THR is empty.
func TestTHREInterrupt(t *testing.T) {
	r := newRig().start(0)
	r.out(regIER, 2)
	if !r.line.level {
		t.Fatal("not raised by enabling")
	}
	if r.in(regIIR) != 0xc2 || r.in(regIIR) != 0xc1 || r.line.level {
		t.Error("not reset by reading IIR")
	}
	r.out(regIER, 0)
	r.out(regIER, 2)
	if r.in(regIIR) != 0xc2 {
		t.Error("not raised again (Linux's THRE test)")
	}
}

// TestInput: data interrupt at the trigger level, time-out below, bounded FIFO,
// and the host is asked for more once.
func TestInput(t *testing.T) {
	r := newRig().start(0x01)
	r.out(regIIR, 0x81) // trigger level 8
	if n := r.Receive([]byte("1234567")); n != 7 || r.in(regIIR) != 0xcc || !r.line.level {
		t.Errorf("below the trigger: took %d, IIR %#x", n, r.in(regIIR))
	}
	if n := r.Receive([]byte("89abcdefghi")); n != 9 || r.in(regIIR) != 0xc4 {
		t.Errorf("above the trigger: took %d, IIR %#x", n, r.in(regIIR))
	}
	var got []byte
	for r.in(regLSR)&1 != 0 {
		got = append(got, r.in(regData))
	}
	if string(got) != "123456789abcdefg" || r.line.level || r.asked != 1 {
		t.Errorf("read %q, line %v, asked %d times", got, r.line.level, r.asked)
	}
	if r.in(regLSR)&2 != 0 {
		t.Error("overrun without a lost byte")
	}
}

// TestNoFIFO: character mode holds one byte.
func TestNoFIFO(t *testing.T) {
	r := newRig()
	if n := r.Receive([]byte("ab")); n != 1 || r.in(regIIR) != 1 {
		t.Errorf("took %d", n)
	}
	if r.in(regData) != 'a' || r.asked != 1 {
		t.Error("byte lost or host not asked")
	}
}

// TestBreak: §8.4 bits 4 and 7, shown with its byte, priority over data.
func TestBreak(t *testing.T) {
	r := newRig().start(0x05)
	r.Receive([]byte{'x'})
	r.Break()
	if l := r.in(regLSR); l&0x91 != 0x81 {
		t.Errorf("LSR %#x with the break behind a byte", l)
	}
	r.in(regData)
	if r.in(regIIR)&0xf != 6 {
		t.Error("no line status interrupt")
	}
	if l := r.in(regLSR); l&0x91 != 0x91 {
		t.Errorf("LSR %#x at the break", l)
	}
	if l := r.in(regLSR); l&0x91 != 0x01 {
		t.Errorf("LSR %#x after it was read", l)
	}
}

// TestLoopback: §8.8 bit 4, outputs to inputs, data to receiver, nothing out.
func TestLoopback(t *testing.T) {
	r := newRig().start(0)
	r.out(regMCR, 0x1a)
	if m := r.in(regMSR) & 0xf0; m != 0x90 {
		t.Errorf("MSR %#x (Linux's probe)", m)
	}
	r.out(regMCR, 0x1b)
	if m := r.in(regMSR); m&0x22 != 0x22 {
		t.Errorf("MSR %#x: no DSR or delta", m)
	}
	for i := range 20 {
		r.out(regData, uint8(i))
	}
	if r.in(regLSR)&2 == 0 || r.in(regLSR)&2 != 0 {
		t.Error("overrun not shown once")
	}
	if n := r.Receive([]byte("x")); n != 0 {
		t.Error("input taken in loopback")
	}
	for i := range 16 {
		if got := r.in(regData); got != uint8(i) {
			t.Errorf("byte %d: %d", i, got)
		}
	}
	if len(r.host.got) != 0 || r.asked != 0 {
		t.Error("loopback touched the wire")
	}
	r.out(regMCR, 0x0b)
	if r.asked != 1 {
		t.Error("the host was not asked again after loopback")
	}
}

// TestTrailingEdge: §8.9 bit 2, TERI counts only the end of ringing.
func TestTrailingEdge(t *testing.T) {
	r := newRig()
	r.out(regMCR, 0x10)
	r.in(regMSR)
	r.out(regMCR, 0x14)
	if m := r.in(regMSR); m&0x44 != 0x40 {
		t.Errorf("RI on: MSR %#x", m)
	}
	r.out(regMCR, 0x10)
	if m := r.in(regMSR); m&0x44 != 0x04 {
		t.Errorf("RI off: MSR %#x", m)
	}
}

// TestOUT2 gates the line on a PC.
func TestOUT2(t *testing.T) {
	r := newRig()
	r.out(regIER, 1)
	r.Receive([]byte{1})
	if r.line.level {
		t.Error("line without OUT2")
	}
	r.out(regMCR, 8)
	if !r.line.level {
		t.Error("no line with OUT2")
	}
}

// TestEveryAccess is row 1 of the hostile guest: every offset and width.
func TestEveryAccess(t *testing.T) {
	r := newRig()
	for _, size := range []int{1, 2, 4, 8} {
		for off := uint64(0); off+uint64(size) <= numRegs; off++ {
			for _, v := range []uint64{0, ^uint64(0), 0xa5a5a5a5a5a5a5a5} {
				r.Write(off, size, v)
				if got := r.Read(off, size); size < 8 && got>>(8*size) != 0 {
					t.Errorf("%d bytes at %d read %#x", size, off, got)
				}
			}
		}
	}
}

func TestNoAllocations(t *testing.T) {
	r := newRig()
	r.host.got = make([]byte, 0, 1<<16)
	p := []byte{1}
	if n := testing.AllocsPerRun(1000, func() {
		r.out(regData, 'x')
		r.in(regLSR)
		r.Receive(p)
		r.in(regData)
	}); n != 0 {
		t.Errorf("%v allocations an access", n)
	}
}

// TestQueue: bounded, in order, refills the chip, ends after Close.
func TestQueue(t *testing.T) {
	var u *UART
	q := NewQueue(7, func() { u.Flush() })
	u = New(&line{}, q, nil)
	var want []byte
	for i := range 20 {
		u.Write(regData, 1, uint64(i))
		if i < 8 { // 7 in the queue, 1 in the chip
			want = append(want, byte(i))
		}
	}
	done := make(chan []byte)
	go func() {
		b, _ := io.ReadAll(q)
		done <- b
	}()
	deadline := time.Now().Add(5 * time.Second)
	for u.Read(regLSR, 1)&0x40 == 0 && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	q.Close()
	if got := <-done; !bytes.Equal(got, want) {
		t.Errorf("got % x, want % x", got, want)
	}
	if !q.Put(1) {
		t.Error("a closed queue makes the guest wait")
	}
}

func FuzzAccess(f *testing.F) {
	f.Add([]byte{3, 0x80, 0, 1, 8, 'x', 4, 0x1f})
	f.Fuzz(func(t *testing.T, ops []byte) {
		r := newRig()
		for ; len(ops) >= 2; ops = ops[2:] {
			switch op := ops[0]; {
			case op&0xc0 == 0:
				r.out(uint64(op&7), ops[1])
			case op&0xc0 == 0x40:
				r.in(uint64(op & 7))
			case op&0xc0 == 0x80:
				r.Receive(ops)
				r.Break()
			default:
				r.host.room = int(ops[1])
				r.Flush()
			}
			if r.rx.n < 0 || r.rx.n > fifoSize || r.tx.n < 0 || r.tx.n > fifoSize || r.rx.flags < 0 || r.rx.flags > r.rx.n {
				t.Fatalf("FIFO state %d %d %d", r.rx.n, r.tx.n, r.rx.flags)
			}
			if r.line.level != r.level {
				t.Fatal("line and chip disagree")
			}
		}
	})
}
