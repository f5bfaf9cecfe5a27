package nvme

import (
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/disk/fakedisk"
)

// TestInline: while the goroutine waits, the CPU that rings is given quick answers at
// once, with doorbells and with shadow doorbells; what is more than a few, and what
// has to wait, is the goroutine's.
func TestInline(t *testing.T) {
	for _, shadow := range []bool{false, true} {
		r := newRig(t, fakedisk.Null{RAM: newRAM(1 << 20)}).up(64)
		if shadow {
			if st := r.admin(entry{op: adminDoorbellBuf, prp1: listAt, prp2: listAt + 0x1000}); st.status != 0 {
				t.Fatalf("doorbell buffers: %#x", st.status)
			}
		}
		at := 0
		for range 200 {
			cid := r.put(1, rw(nvmRead, 0, 1, dataAt, 0))
			if shadow {
				r.put64(listAt+8, uint64(r.sq[1].tail)|uint64(r.sq[1].head)<<32)
			}
			r.kick(1)
			c, ok := r.take(1)
			if ok {
				at++
				r.ring(3, r.sq[1].head)
			} else {
				c = r.wait(1)
			}
			if c.cid != cid || c.status != statusOK {
				t.Fatalf("%+v", c)
			}
			time.Sleep(50 * time.Microsecond) // the goroutine waits again
		}
		if at == 0 {
			t.Errorf("shadow %v: no command was answered on the CPU's thread", shadow)
		}
		for range 20 { // more at once, flushes among them
			for i := range 30 {
				e := rw(nvmRead, 0, 1, dataAt, 0)
				if i%7 == 0 {
					e = entry{op: nvmFlush, ns: 1}
				}
				r.put(1, e)
			}
			if shadow {
				r.put64(listAt+8, uint64(r.sq[1].tail)|uint64(r.sq[1].head)<<32)
			}
			r.kick(1)
			for range 30 {
				if c := r.wait(1); c.status != statusOK {
					t.Fatalf("%+v", c)
				}
				if shadow {
					r.put64(listAt+8, uint64(r.sq[1].tail)|uint64(r.sq[1].head)<<32)
				}
			}
		}
	}
}
