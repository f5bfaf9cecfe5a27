package tpm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/devices/tpm"
	"github.com/gvmspawn/gvmspawn/devices/tpm/tpmtest"
	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

const base = 0xfed40000

// chip is one of the front-ends.
type chip interface {
	bus.Device
	Close() error
}

// frontEnd makes and drives one of the interfaces.
type frontEnd struct {
	name   string
	limit  int // of commands
	make   func(tpm.Backend) (chip, error)
	driver func(bus.Device, int) (*tpmtest.Driver, error)
}

var frontEnds = []frontEnd{
	{"TIS", 4096, func(b tpm.Backend) (chip, error) { return tpm.NewTIS(b) }, tpmtest.NewTIS},
	{"CRB", 3968, func(b tpm.Backend) (chip, error) { return tpm.NewCRB(b, base) }, tpmtest.NewCRB},
}

func newChip(t testing.TB, f frontEnd, b tpm.Backend) chip {
	t.Helper()
	c, err := f.make(b)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func newTIS(t testing.TB, b tpm.Backend) chip { return newChip(t, frontEnds[0], b) }
func newCRB(t testing.TB, b tpm.Backend) chip { return newChip(t, frontEnds[1], b) }

// command is a command of n bytes in all.
func command(n int, code uint32) []byte {
	c := make([]byte, n)
	binary.BigEndian.PutUint16(c, 0x8001)
	binary.BigEndian.PutUint32(c[2:], uint32(n))
	binary.BigEndian.PutUint32(c[6:], code)
	for i := 10; i < n; i++ {
		c[i] = byte(i)
	}
	return c
}

// code is a response's.
func code(t *testing.T, response []byte) uint32 {
	t.Helper()
	if len(response) < 10 || int(binary.BigEndian.Uint32(response[2:])) != len(response) {
		t.Fatalf("not a response: %x", response)
	}
	return binary.BigEndian.Uint32(response[6:])
}

// TestExecute: commands and responses of every size pass unchanged, at the
// locality that sent them.
func TestExecute(t *testing.T) {
	for _, f := range frontEnds {
		t.Run(f.name, func(t *testing.T) {
			var at int
			b := tpmtest.NewBackend(func(locality int, c []byte) ([]byte, error) { at = locality; return c, nil })
			c := newChip(t, f, b)
			if b.BufferSize != f.limit {
				t.Errorf("buffer of %d bytes", b.BufferSize)
			}
			for locality := range 4 {
				d, err := f.driver(c, locality)
				if err != nil {
					t.Fatal(err)
				}
				for _, n := range []int{10, 11, 64, 1000, f.limit} {
					got, err := d.Send(command(n, 0x17b))
					if err != nil || !bytes.Equal(got, command(n, 0x17b)) || at != locality {
						t.Fatalf("%d bytes: %v, %d bytes, locality %d", n, err, len(got), at)
					}
				}
				d.Close()
			}
		})
	}
}

// TestFailingBackend: a backend that fails, or answers nonsense, gives the
// guest a TPM in failure mode (Library, Part 1 "Failure Mode").
func TestFailingBackend(t *testing.T) {
	answers := map[string]func(int, []byte) ([]byte, error){
		"error": func(int, []byte) ([]byte, error) { return nil, errors.New("gone") },
		"empty": func(int, []byte) ([]byte, error) { return nil, nil },
		"short": func(int, []byte) ([]byte, error) { return tpmtest.Success[:9], nil },
		"lies":  func(int, []byte) ([]byte, error) { return append([]byte{0}, tpmtest.Success...), nil },
	}
	for _, f := range frontEnds {
		for name, answer := range answers {
			t.Run(f.name+" "+name, func(t *testing.T) {
				d, err := f.driver(newChip(t, f, tpmtest.NewBackend(answer)), 0)
				if err != nil {
					t.Fatal(err)
				}
				r, err := d.Send(command(12, 0x17b))
				if err != nil || code(t, r) != 0x101 {
					t.Errorf("%x, %v", r, err)
				}
			})
		}
	}
}

func TestInitFails(t *testing.T) {
	for _, f := range frontEnds {
		if _, err := f.make(&brokenBackend{}); err == nil {
			t.Error(f.name)
		}
	}
}

type brokenBackend struct{ tpmtest.Backend }

func (*brokenBackend) Init(int) error { return errors.New("no") }

// blocked is a backend that holds every command until told to go on.
func blocked() (*tpmtest.Backend, chan []byte) {
	release := make(chan []byte)
	return tpmtest.NewBackend(func(int, []byte) ([]byte, error) { return <-release, nil }), release
}

// eventually waits for what the chip's goroutine does.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// TestCloseWhileRunning: Close cancels and waits.
func TestCloseWhileRunning(t *testing.T) {
	b, release := blocked()
	c, err := tpm.NewCRB(b, base)
	if err != nil {
		t.Fatal(err)
	}
	crbStart(c, command(10, 1))
	go func() { <-b.Cancelled; release <- tpmtest.Success }()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// TestNoAllocations: register accesses are an exit's work.
func TestNoAllocations(t *testing.T) {
	c := newTIS(t, tpmtest.NewBackend(nil))
	c.Write(0, 1, 2)
	if n := testing.AllocsPerRun(100, func() {
		c.Write(0x18, 1, 0x40)
		c.Write(0x24, 4, 0x01800000)
		c.Read(0x18, 4)
	}); n != 0 {
		t.Errorf("TIS: %v allocations", n)
	}
	c = newCRB(t, tpmtest.NewBackend(nil))
	c.Write(8, 4, 1)
	if n := testing.AllocsPerRun(100, func() { c.Write(0x40, 4, 1); c.Write(0x80, 8, 1); c.Read(0x4c, 4) }); n != 0 {
		t.Errorf("CRB: %v allocations", n)
	}
}

// FuzzRegisters is any sequence of accesses (hostile row 26): nothing panics,
// nothing hangs, and commands reach the backend with a true size only.
func FuzzRegisters(f *testing.F) {
	f.Add(false, []byte{0, 0, 1, 2, 0, 0x18, 1, 0x40, 0, 0x24, 4, 1, 0, 0x24, 8, 10, 0, 0x18, 1, 0x20})
	f.Add(true, []byte{0, 8, 4, 1, 0, 0x40, 4, 1, 0, 0x80, 8, 1, 0, 0x4c, 4, 1, 0, 0x48, 1, 1, 0x10, 8, 4, 4})
	f.Fuzz(func(t *testing.T, crb bool, ops []byte) {
		b := tpmtest.NewBackend(func(locality int, c []byte) ([]byte, error) {
			if len(c) < 10 || int(binary.BigEndian.Uint32(c[2:])) != len(c) || locality < 0 || locality > 3 {
				panic(fmt.Sprintf("locality %d, command %x", locality, c))
			}
			return c, nil
		})
		c := newTIS(t, b)
		if crb {
			c = newCRB(t, b)
		}
		for len(ops) >= 4 {
			off := (uint64(ops[0])<<8 | uint64(ops[1])) % tpm.Size
			size := 1 << (ops[2] & 3)
			off = min(off, tpm.Size-uint64(size))
			if ops[2]&0x80 != 0 {
				c.Read(off, size)
			} else {
				c.Write(off, size, uint64(ops[3])*0x0101010101010101>>(ops[2]&0x38))
			}
			ops = ops[4:]
		}
	})
}
