package tpm_test

import (
	"testing"

	"github.com/gvmspawn/gvmspawn/devices/tpm/tpmtest"
)

// TestTISRegisters is what the registers say before anything happened (PTP,
// FIFO Interface).
func TestTISRegisters(t *testing.T) {
	c := newTIS(t, tpmtest.NewBackend(nil))
	for _, r := range []struct {
		name string
		off  uint64
		size int
		want uint64
	}{
		{"TPM_ACCESS_0", 0x0000, 1, 0x81}, // valid, not established
		{"TPM_ACCESS_4", 0x4000, 1, 0x81},
		{"TPM_STS_0 without the locality", 0x0018, 4, 0xffffffff},
		{"TPM_INTF_CAPABILITY_0", 0x0014, 4, 0x30000600},
		{"TPM_INT_ENABLE_0", 0x0008, 4, 0},
		{"TPM_INTERFACE_ID_0", 0x0030, 4, 0x00083900},
		{"TPM_DID_VID_2", 0x2f00, 4, 0x00011014},
		{"TPM_RID_0", 0x0f04, 1, 1},
		{"nothing there", 0x0050, 4, 0xffffffff},
		{"TPM_DATA_FIFO_0 without the locality", 0x0024, 4, 0xffffffff},
		{"across TPM_DID_VID and TPM_RID", 0x0f02, 4, 0xff010001},
	} {
		if got := c.Read(r.off, r.size); got != r.want {
			t.Errorf("%s is %#x, want %#x", r.name, got, r.want)
		}
	}
}

// tis reads TPM_ACCESS and TPM_STS of a locality.
type tis struct {
	chip
	t *testing.T
}

func (c tis) access(locality uint64, want uint64) {
	c.t.Helper()
	if got := c.Read(locality<<12, 1); got != want|0x81 {
		c.t.Errorf("TPM_ACCESS_%d is %#x, want %#x", locality, got, want|0x81)
	}
}

// status checks the bits of TPM_STS's first byte but stsValid, and burstCount.
func (c tis) status(locality, want uint64, burst uint64) {
	c.t.Helper()
	if got := c.Read(locality<<12|0x18, 4); got != 1<<26|0x80|want|burst<<8 {
		c.t.Errorf("TPM_STS_%d is %#x, want %#x and burst %d", locality, got, want, burst)
	}
}

func (c tis) request(locality uint64)      { c.Write(locality<<12, 1, 0x02) }
func (c tis) relinquish(locality uint64)   { c.Write(locality<<12, 1, 0x20) }
func (c tis) seize(locality uint64)        { c.Write(locality<<12, 1, 0x08) }
func (c tis) setStatus(locality, v uint64) { c.Write(locality<<12|0x18, 1, v) }
func (c tis) fifo(locality uint64, v []byte) {
	for _, b := range v {
		c.Write(locality<<12|0x24, 1, uint64(b))
	}
}

const (
	active    = 0x20
	seized    = 0x10
	pending   = 0x04
	requested = 0x02
	ready     = 0x40
	goBit     = 0x20
	avail     = 0x10
	expect    = 0x08
	retry     = 0x02
)

// TestTISLocality: requests, the order in which they are granted, seizing, and
// that locality 4 is not for software.
func TestTISLocality(t *testing.T) {
	c := tis{newTIS(t, tpmtest.NewBackend(nil)), t}
	c.request(1)
	c.access(1, active)
	c.request(0)
	c.request(3)
	c.access(0, requested|pending)
	c.access(1, active|pending)
	c.access(3, requested|pending)
	c.relinquish(1)
	c.access(3, active|pending)
	c.access(1, pending)
	c.seize(2) // lower than the active one
	c.access(3, active|pending)
	c.relinquish(0) // withdraws the wish
	c.access(0, 0)
	c.relinquish(3)
	c.access(3, 0)
	c.request(0)
	c.seize(2)
	c.access(2, active)
	c.access(0, seized)
	c.Write(0, 1, seized)
	c.access(0, 0)
	c.seize(4)
	c.request(4)
	c.access(4, 0)
	c.Write(2<<12, 1, active|requested) // two bits: nothing
	c.access(2, active)
}

// TestTISStates walks the states of a command (PTP, FIFO Interface, "TPM State
// Transition Table"), with what is ignored in each.
func TestTISStates(t *testing.T) {
	b, release := blocked()
	c := tis{newTIS(t, b), t}
	c.request(0)
	c.status(0, 0, 0)
	c.setStatus(0, goBit)
	c.fifo(0, []byte{1})
	c.status(0, 0, 0) // idle takes nothing but commandReady
	c.setStatus(0, ready)
	c.status(0, ready, 4096)
	c.setStatus(0, goBit)
	c.status(0, ready, 4096)
	cmd := command(12, 0x143)
	c.fifo(0, cmd[:5])
	c.status(0, expect, 4096-5)
	c.setStatus(0, goBit) // not complete
	c.status(0, expect, 4096-5)
	c.setStatus(0, ready) // start again
	c.status(0, ready, 4096)
	c.fifo(0, cmd)
	c.status(0, 0, 0)
	c.fifo(0, []byte{0xee}) // behind the end
	c.setStatus(0, goBit)
	c.status(0, 0, 0)
	c.fifo(0, []byte{0xee})
	c.setStatus(0, goBit)
	if got := c.Read(0x24, 1); got != 0xff {
		t.Errorf("FIFO is %#x while the command runs", got)
	}
	release <- tpmtest.Success
	eventually(t, "no response", func() bool { return c.Read(0x18, 1)&avail != 0 })
	const selfTestDone = 0x04
	c.status(0, avail|selfTestDone, 10)
	if got := c.Read(0x24, 4); got != 0x00000180 {
		t.Errorf("FIFO is %#x", got)
	}
	c.status(0, avail|selfTestDone, 6)
	c.setStatus(0, retry)
	c.status(0, avail|selfTestDone, 10)
	if got := c.Read(0x80, 8); got != 0x0000_0a00_0000_0180 { // XDATA_FIFO
		t.Errorf("XFIFO is %#x", got)
	}
	if got := c.Read(0x24, 4); got != 0xffff0000 { // two bytes are left
		t.Errorf("FIFO ends with %#x", got)
	}
	c.status(0, selfTestDone, 0)
	c.setStatus(0, ready)
	c.status(0, ready|selfTestDone, 4096)
}

// TestTISCancel: commandCancel lets the command end, commandReady drops it, and
// the interface is ready only when the backend is.
func TestTISCancel(t *testing.T) {
	b, release := blocked()
	c := tis{newTIS(t, b), t}
	start := func() {
		c.setStatus(0, ready)
		c.fifo(0, command(10, 1))
		c.setStatus(0, goBit)
	}
	c.request(0)
	start()
	c.Write(0x1b, 1, 1) // commandCancel
	<-b.Cancelled
	release <- tpmtest.Success
	eventually(t, "no response after cancel", func() bool { return c.Read(0x18, 1)&avail != 0 })
	start()
	c.setStatus(0, ready)
	<-b.Cancelled
	c.status(0, 0, 0)
	c.setStatus(0, goBit)
	release <- tpmtest.Success
	eventually(t, "not ready after abort", func() bool { return c.Read(0x18, 1)&ready != 0 })
	c.status(0, ready, 4096)
}

// TestTISSeizeWhileRunning: a higher locality takes the TPM during a command;
// the response is nobody's.
func TestTISSeizeWhileRunning(t *testing.T) {
	b, release := blocked()
	c := tis{newTIS(t, b), t}
	c.request(0)
	c.setStatus(0, ready)
	c.fifo(0, command(10, 1))
	c.setStatus(0, goBit)
	c.seize(3)
	<-b.Cancelled
	c.access(0, seized)
	c.setStatus(3, ready)
	c.status(3, 0, 0)
	release <- tpmtest.Success
	eventually(t, "not ready", func() bool { return c.Read(3<<12|0x18, 1)&ready != 0 })
	c.fifo(3, command(10, 1))
	c.setStatus(3, goBit)
	go func() { release <- tpmtest.Success }()
	eventually(t, "no response", func() bool { return c.Read(3<<12|0x18, 1)&avail != 0 })
}

// TestTISBadSize: a header whose size is less than a header, or more than the
// buffer.
func TestTISBadSize(t *testing.T) {
	c := tis{newTIS(t, tpmtest.NewBackend(nil)), t}
	c.request(0)
	c.setStatus(0, ready)
	c.fifo(0, []byte{0x80, 1, 0, 0, 0, 4, 0, 0, 1, 0x43})
	c.status(0, 0, 0)
	c.setStatus(0, goBit)
	c.status(0, avail, 10)
	if c.Read(0x80, 8); c.Read(0x24, 2) != 0x4201 { // TPM_RC_COMMAND_SIZE
		t.Error("not TPM_RC_COMMAND_SIZE")
	}
	c.setStatus(0, ready)
	big := command(5000, 1)
	c.fifo(0, big)
	c.status(0, expect, 0)
	c.setStatus(0, goBit)
	c.status(0, expect, 0)
	c.setStatus(0, ready)
	c.status(0, ready, 4096)
}
