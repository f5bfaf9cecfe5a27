package tpm_test

import (
	"encoding/binary"
	"testing"

	"github.com/gvmspawn/gvmspawn/devices/tpm/tpmtest"
	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// crbStart takes locality 0 and starts a command.
func crbStart(c bus.Device, command []byte) {
	c.Write(0x08, 4, 1)
	c.Write(0x40, 4, 1)
	for i, b := range command {
		c.Write(0x80+uint64(i), 1, uint64(b))
	}
	c.Write(0x4c, 4, 1)
}

// wantRegisters compares registers of four bytes.
func wantRegisters(t *testing.T, c bus.Device, what string, want map[uint64]uint64) {
	t.Helper()
	for off, w := range want {
		if got := c.Read(off, 4); got != w {
			t.Errorf("%s: register %#x is %#x, want %#x", what, off, got, w)
		}
	}
}

// TestCRBRegisters is what the registers say (PTP, CRB Interface).
func TestCRBRegisters(t *testing.T) {
	c := newCRB(t, tpmtest.NewBackend(nil))
	wantRegisters(t, c, "no locality", map[uint64]uint64{
		0x00: 0x81, 0x0c: 0, 0x30: 0x010a5911, 0x34: 0x00011014, 0x3030: 0x010a5911,
		0x40: 0xffffffff, 0x44: 0xffffffff, 0x4c: 0xffffffff, 0x80: 0xffffffff,
	})
	c.Write(0x2008, 4, 1)
	wantRegisters(t, c, "locality 2", map[uint64]uint64{
		0x0000: 0x81 | 2 | 2<<2, 0x200c: 1, 0x000c: 0, 0x0044: 0xffffffff,
		0x2038: 0, 0x2040: 0, 0x2044: 2, 0x2048: 0, 0x204c: 0, 0x2058: 3968, 0x205c: base + 0x2080, 0x2060: 0,
		0x2064: 3968, 0x2068: base + 0x2080, 0x206c: 0, 0x2070: 0xffffffff,
	})
}

// TestCRBLocality: grants, waiting, seizing, and that data does not pass from
// one locality to the next.
func TestCRBLocality(t *testing.T) {
	c := newCRB(t, tpmtest.NewBackend(nil))
	c.Write(0x0008, 4, 1)
	c.Write(0x0040, 4, 1)
	c.Write(0x0080, 4, 0x11223344)
	c.Write(0x1008, 4, 1)
	wantRegisters(t, c, "1 waits", map[uint64]uint64{0x000c: 1, 0x100c: 0, 0x1080: 0xffffffff})
	c.Write(0x2008, 4, 4)
	wantRegisters(t, c, "2 seized", map[uint64]uint64{0x000c: 2, 0x200c: 1, 0x2044: 2, 0x2080: 0})
	c.Write(0x2008, 4, 2)
	wantRegisters(t, c, "1 has it", map[uint64]uint64{0x100c: 1, 0x0000: 0x81 | 2 | 1<<2})
	c.Write(0x0008, 4, 1)
	wantRegisters(t, c, "0 waits and knows", map[uint64]uint64{0x000c: 0})
	c.Write(0x4008, 4, 4)
	wantRegisters(t, c, "4 is not for software", map[uint64]uint64{0x100c: 1, 0x400c: 0})
}

// TestCRBStates: idle, ready and running, with what each ignores.
func TestCRBStates(t *testing.T) {
	b, release := blocked()
	c := newCRB(t, b)
	c.Write(0x08, 4, 1)
	c.Write(0x80, 4, 0x1234)
	c.Write(0x4c, 4, 1)
	wantRegisters(t, c, "idle", map[uint64]uint64{0x44: 2, 0x4c: 0, 0x80: 0})
	crbStart(c, command(12, 7))
	wantRegisters(t, c, "running", map[uint64]uint64{0x44: 0, 0x4c: 1, 0x80: 0xffffffff})
	c.Write(0x80, 4, 0)     // during run
	c.Write(0x4c, 4, 1)     // start during run
	c.Write(0x40, 4, 2)     // goIdle during run
	c.Write(0x58, 4, 1<<20) // sizes and addresses are read-only
	c.Write(0x5c, 4, 0)
	wantRegisters(t, c, "still running", map[uint64]uint64{0x44: 0, 0x4c: 1, 0x58: 3968, 0x5c: base + 0x80})
	c.Write(0x48, 4, 1)
	<-b.Cancelled
	release <- tpmtest.Success
	eventually(t, "no end", func() bool { return c.Read(0x4c, 4) == 0 })
	wantRegisters(t, c, "done", map[uint64]uint64{0x44: 0, 0x48: 1, 0x80: 0x00000180, 0x84: 0x00000a00})
	c.Write(0x48, 4, 0)
	c.Write(0x40, 4, 2)
	wantRegisters(t, c, "idle again", map[uint64]uint64{0x44: 2, 0x48: 0, 0x80: 0})
}

// TestCRBBadSize: hostile row 26, the size field beyond the buffer or below a header.
func TestCRBBadSize(t *testing.T) {
	for _, size := range []uint32{0, 9, 3969, 1 << 31, 1<<32 - 1} {
		c := newCRB(t, tpmtest.NewBackend(nil))
		cmd := command(12, 7)
		binary.BigEndian.PutUint32(cmd[2:], size)
		crbStart(c, cmd)
		wantRegisters(t, c, "answered", map[uint64]uint64{0x4c: 0, 0x80: 0x00000180, 0x84: 0x00000a00})
		if got := c.Read(0x86, 4); got != 0x42010000 {
			t.Errorf("size %d: code %#x is not TPM_RC_COMMAND_SIZE", size, got)
		}
	}
}

// TestCRBSeizeWhileRunning: the response is dropped.
func TestCRBSeizeWhileRunning(t *testing.T) {
	b, release := blocked()
	c := newCRB(t, b)
	crbStart(c, command(10, 1))
	c.Write(0x1008, 4, 4)
	<-b.Cancelled
	wantRegisters(t, c, "seized", map[uint64]uint64{0x100c: 1, 0x104c: 1})
	release <- tpmtest.Success
	eventually(t, "no end", func() bool { return c.Read(0x104c, 4) == 0 })
	wantRegisters(t, c, "dropped", map[uint64]uint64{0x1044: 2, 0x1080: 0})
}
