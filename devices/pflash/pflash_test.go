package pflash

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
)

// file is a backing file in memory.
type file struct {
	data   []byte
	writes int
	err    error
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	f.writes++
	return copy(f.data[off:], p), nil
}

// chip is a flash of size bytes, erased, with its file.
func chip(t testing.TB, size int) (*Flash, *file) {
	t.Helper()
	content := bytes.Repeat([]byte{0xff}, size)
	f := &file{data: bytes.Clone(content)}
	c, err := New(Config{Content: content, File: f})
	if err != nil {
		t.Fatal(err)
	}
	return c, f
}

func (f *Flash) expect(t *testing.T, what string, off uint64, size int, want uint64) {
	t.Helper()
	if got := f.Read(off, size); got != want {
		t.Errorf("%s: %#x, want %#x", what, got, want)
	}
}

// write1 writes bytes at one place, as commands are.
func (f *Flash) write1(off uint64, bytes ...uint64) {
	for _, b := range bytes {
		f.Write(off, 1, b)
	}
}

// What OVMF does to tell flash from RAM and ROM (QemuFlash.c).
func TestDetection(t *testing.T) {
	c, _ := chip(t, 3*BlockSize)
	c.expect(t, "content", 5, 1, 0xff)
	c.write1(5, 0x50)
	c.expect(t, "after CLEAR STATUS", 5, 1, 0xff)
	c.write1(5, 0x70)
	c.expect(t, "cleared status", 5, 1, 0)
	c.write1(5, 0xff)
	c.expect(t, "READ ARRAY", 5, 1, 0xff)
}

// AP-646: word program, block erase, their status, what is left alone.
func TestProgramErase(t *testing.T) {
	c, f := chip(t, 3*BlockSize)
	for i, b := range []byte("variable") {
		c.write1(0x1100+uint64(i), 0x10, uint64(b))
		c.expect(t, "status after a program", 0, 1, 0x80)
	}
	if f.writes != 0 {
		t.Errorf("%d writes to the file in the middle of a run", f.writes)
	}
	c.write1(0x1107, 0xff)
	if f.writes != 1 || string(f.data[0x1100:0x1108]) != "variable" {
		t.Errorf("%d writes, %q in the file", f.writes, f.data[0x1100:0x1108])
	}
	c.expect(t, "content", 0x1100, 4, 0x69726176)
	c.write1(0x2000, 0x40, 0x12)
	c.write1(0x1fff, 0x20, 0xd0)
	c.expect(t, "status after an erase", 0x2000, 1, 0x80)
	c.write1(0, 0xff)
	c.expect(t, "an erased block", 0x1100, 4, 0xffffffff)
	c.expect(t, "the next block", 0x2000, 1, 0x12)
	if f.data[0x1100] != 0xff || f.data[0x2000] != 0x12 {
		t.Error("the file is not what the chip is")
	}
	c.write1(0x2000, 0x20, 0xff) // not confirmed
	c.expect(t, "the block after no erase", 0x2000, 1, 0x12)
	c.write1(0x2000, 0x60, 0xd0, 0x10, 0x34, 0xff)
	c.expect(t, "an unlocked byte", 0x2000, 1, 0x34)
}

func TestBuffer(t *testing.T) {
	c, f := chip(t, BlockSize)
	c.write1(0x100, 0xe8)
	c.expect(t, "buffer available", 0x100, 1, 0x80)
	c.write1(0x100, 3)
	for i := range uint64(4) {
		c.Write(0x110+i, 1, 0xa0+i)
	}
	c.write1(0x100, 0xd0)
	c.expect(t, "status", 0x100, 1, 0x80)
	c.write1(0x100, 0xff)
	c.expect(t, "content", 0x110, 4, 0xa3a2a1a0)
	if f.data[0x110] != 0xa0 || f.data[0x10f] != 0xff {
		t.Error("the file is not what the chip is")
	}
	c.write1(0x100, 0xe8, 0)
	c.Write(0x300, 1, 1) // outside the buffer's part
	c.expect(t, "status of a spoilt buffer", 0x100, 1, 0x90)
	c.write1(0x100, 0xff)
	c.expect(t, "content", 0x300, 1, 0xff)
}

// JESD68.01: the query.
func TestQuery(t *testing.T) {
	c, _ := chip(t, 132*BlockSize)
	c.write1(0x55, 0x98)
	c.expect(t, "QRY", 0x10, 4, 0x01595251)
	c.expect(t, "size", 0x27, 1, 20)
	c.expect(t, "blocks and their size", 0x2d, 4, 0x00100083)
	c.write1(0x55, 0x90)
	c.expect(t, "manufacturer and device", 0, 2, 0x1889)
	c.write1(0, 0xf0)
	c.expect(t, "content", 0, 1, 0xff)
}

// The content is shown directly unless a command is under way, and again after
// enough reads.
func TestDirect(t *testing.T) {
	var states []bool
	c, err := New(Config{Content: make([]byte, BlockSize), Direct: func(on bool) { states = append(states, on) }})
	if err != nil {
		t.Fatal(err)
	}
	c.write1(0, 0xff)
	c.write1(0, 0x50)
	for i := range uint64(10) {
		c.write1(i, 0x10, i, 0xff)
		c.Read(i, 1)
	}
	if len(states) != 1 || states[0] {
		t.Errorf("while programming: %v", states)
	}
	for range directAfter {
		c.Read(0, 8)
	}
	if len(states) != 2 || !states[1] {
		t.Errorf("while reading: %v", states)
	}
}

// A file that takes nothing: the guest sees it in the status, people once.
func TestFileFails(t *testing.T) {
	told := 0
	c, err := New(Config{Content: make([]byte, BlockSize), File: &file{err: errors.New("full")}, Failed: func(error) { told++ }})
	if err != nil {
		t.Fatal(err)
	}
	c.write1(0, 0x20, 0xd0)
	c.expect(t, "status", 0, 1, 0xa0)
	c.write1(0, 0x10, 1, 0x70)
	c.expect(t, "status", 0, 1, 0xb0)
	if told != 1 {
		t.Errorf("told %d times", told)
	}
	if _, err := New(Config{Content: make([]byte, 100)}); err == nil {
		t.Error("a chip of 100 bytes")
	}
}

// A machine that is killed leaves a beginning of what was written: at every
// moment the file is what the chip was at some moment before, and after the
// last command but one all of it.
func TestFileFollows(t *testing.T) {
	c, f := chip(t, 4*BlockSize)
	states := [][]byte{bytes.Clone(f.data)}
	r := rand.New(rand.NewPCG(1, 2))
	next := 0
	for range 2000 {
		at := uint64(r.IntN(len(f.data)))
		if r.IntN(3) != 0 {
			at = (uint64(next) + 1) % uint64(len(f.data))
		}
		switch r.IntN(20) {
		case 0:
			c.write1(at, 0x20, 0xd0)
		case 1:
			c.write1(at, 0xff)
		default:
			c.write1(at, 0x10, r.Uint64()&0xff)
		}
		next = int(at)
		states = append(states, bytes.Clone(c.cfg.Content))
		i := len(states) - 1
		for ; i >= 0 && !bytes.Equal(states[i], f.data); i-- {
		}
		if i < 0 {
			t.Fatal("the file holds what the chip never held")
		}
		states = states[i:]
	}
	if err := c.Close(); err != nil || !bytes.Equal(f.data, c.cfg.Content) {
		t.Errorf("after Close the file is not what the chip is (%v)", err)
	}
}

func TestAllocations(t *testing.T) {
	c, _ := chip(t, BlockSize)
	if n := testing.AllocsPerRun(100, func() {
		c.write1(1, 0x10, 2, 0xff)
		c.write1(1, 0x20, 0xd0, 0x70)
		c.Read(1, 4)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzFlash: hostile-guest.md row 26, any command sequence. The file follows
// the chip, and no access goes outside.
func FuzzFlash(f *testing.F) {
	f.Add([]byte{0x10, 0, 0, 0x41, 0, 0, 0xff, 0, 0})
	f.Add([]byte{0xe8, 1, 0, 0x03, 1, 0, 1, 1, 0, 2, 1, 1, 3, 1, 2, 4, 1, 3, 0xd0, 1, 0})
	f.Add([]byte{0x20, 0xff, 0x1f, 0xd0, 0xff, 0x1f, 0x98, 0, 0})
	f.Fuzz(func(t *testing.T, ops []byte) {
		c, file := chip(t, 2*BlockSize)
		for ; len(ops) >= 3; ops = ops[3:] {
			size := 1 << (ops[1] >> 5 & 3)
			off := uint64(ops[1]&0x1f)<<8 | uint64(ops[2])
			off = min(off, uint64(2*BlockSize-size))
			if ops[2]&0x80 != 0 {
				c.Read(off, size)
			}
			c.Write(off, size, uint64(ops[0])*0x0101010101010101)
		}
		if c.Close(); !bytes.Equal(file.data, c.cfg.Content) {
			t.Error("the file is not what the chip is")
		}
	})
}
