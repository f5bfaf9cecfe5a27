package nvme

import (
	"encoding/binary"
	"log/slog"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/devices/pci"
	"github.com/gvmspawn/gvmspawn/vmm/bus"
	"github.com/gvmspawn/gvmspawn/vmm/bus/bustest"
	"github.com/gvmspawn/gvmspawn/vmm/disk"
	"github.com/gvmspawn/gvmspawn/vmm/disk/fakedisk"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

const (
	ramSize  = 64 << 20
	dataAt   = 0x10_0000 // scratch for the tests' data
	listAt   = 0x8_0000  // PRP lists
	queuesAt = 0x1_0000  // two pages a queue
	patience = 20 * time.Second
)

// rig is a host with a driver for tests that sees one controller.
type rig struct {
	testing.TB
	bus.Bus
	c     *Controller
	wires *bustest.Wires
	mem   *mem.Memory
	ram   []byte
	bar   uint64
	sq    []driverQueue
	cid   uint16
}

// driverQueue is the driver's side of a queue pair.
type driverQueue struct {
	size       uint32
	tail, head uint32
	phase      uint16
	sq, cq     uint64
}

type options struct {
	queues  int
	discard bool
	ram     uint64
}

func newRig(t testing.TB, img disk.Image, change ...func(*options)) *rig {
	t.Helper()
	o := options{queues: 2, discard: true, ram: ramSize}
	for _, f := range change {
		f(&o)
	}
	r := &rig{TB: t, wires: new(bustest.Wires), mem: mem.New()}
	_, err := r.mem.Add("RAM", 0, o.ram, mem.RAM)
	r.check(err)
	t.Cleanup(func() { _ = r.mem.Close() })
	r.ram, err = r.mem.Slice(0, o.ram)
	r.check(err)
	host, err := pci.NewHost(&r.MMIO, pci.Config{
		Low: pci.Window{Start: 0xc000_0000, End: 0xe000_0000}, High: pci.Window{Start: 1 << 36, End: 1 << 38}, ECAM: 0xe000_0000,
	})
	r.check(err)
	drive := disk.NewDrive(disk.Config{Image: img, Discard: o.discard, Log: slog.New(slog.DiscardHandler)})
	r.c, err = New("test", Config{Drive: drive, Queues: o.queues, Serial: "disk.raw", ID: [16]byte{1, 2, 3}}, r.mem, r.wires)
	r.check(err)
	t.Cleanup(func() { _ = r.c.Close() })
	_, err = host.Add(r.c.Function)
	r.check(err)
	r.c.WriteConfig(4, 2, pci.CommandMemory|pci.CommandBusMaster)
	r.bar = r.c.BARAddress(0)
	r.sq = make([]driverQueue, o.queues+1)
	// MSI-X on, all vectors to some address, unmasked.
	for i := range uint64(o.queues + 1) {
		r.write64(tableAt+16*i, 0xfee0_0000)
		r.write(tableAt+16*i+8, uint32(i))
		r.write(tableAt+16*i+12, 0)
	}
	capAt := int(r.c.ReadConfig(0x34, 1))
	r.c.WriteConfig(capAt+2, 2, 1<<15)
	return r
}

func (r *rig) check(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

func (r *rig) read(at uint64) uint32      { return uint32(r.MMIORead(r.bar+at, 4)) }
func (r *rig) write(at uint64, v uint32)  { r.MMIOWrite(r.bar+at, 4, uint64(v)) }
func (r *rig) write64(at, v uint64)       { r.MMIOWrite(r.bar+at, 8, v) }
func (r *rig) ring(i uint64, v uint32)    { r.write(doorbellAt+4*i, v) }
func (r *rig) put64(at uint64, v uint64)  { binary.LittleEndian.PutUint64(r.ram[at:], v) }
func (r *rig) bytes(at, n uint64) []byte  { return r.ram[at : at+n] }
func (r *rig) queueAt(i int) (sq, cq int) { return queuesAt + i*0x8000, queuesAt + i*0x8000 + 0x4000 }

func (r *rig) until(what string, ok func() bool) {
	r.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(50 * time.Microsecond) {
		if time.Now().After(end) {
			r.Fatalf("no %s, CSTS %#x", what, r.read(regCSTS))
		}
	}
}

const ccGood = ccEnable | sqEntryShift<<ccIOSQES | cqEntryShift<<ccIOCQES

// enable brings the controller up with an admin queue of 32 entries (§7.6.1).
func (r *rig) enable() {
	r.Helper()
	sq, cq := r.queueAt(0)
	r.sq[0] = driverQueue{size: 32, phase: 1, sq: uint64(sq), cq: uint64(cq)}
	clear(r.ram[queuesAt : queuesAt+0x8000*len(r.sq)])
	r.write(regAQA, 31|31<<16)
	r.write64(regASQ, uint64(sq))
	r.write64(regACQ, uint64(cq))
	r.write(regCC, ccGood)
	r.until("ready", func() bool { return r.read(regCSTS)&cstsReady != 0 })
}

// disable resets the controller.
func (r *rig) disable() {
	r.Helper()
	r.write(regCC, 0)
	r.until("reset", func() bool { return r.read(regCSTS) == 0 })
}

// up enables the controller with all I/O queue pairs, of size entries.
func (r *rig) up(size uint32) *rig {
	r.Helper()
	r.enable()
	for i := 1; i < len(r.sq); i++ {
		sq, cq := r.queueAt(i)
		r.sq[i] = driverQueue{size: size, phase: 1, sq: uint64(sq), cq: uint64(cq)}
		id := uint32(i)
		if st := r.admin(entry{op: adminCreateCQ, prp1: uint64(cq), d10: id | (size-1)<<16, d11: 1 | 2 | id<<16}); st.status != 0 {
			r.Fatalf("create completion queue: %#x", st.status)
		}
		if st := r.admin(entry{op: adminCreateSQ, prp1: uint64(sq), d10: id | (size-1)<<16, d11: 1 | id<<16}); st.status != 0 {
			r.Fatalf("create submission queue: %#x", st.status)
		}
	}
	return r
}

// entry is a command.
type entry struct {
	op, flags                    uint8
	ns                           uint32
	prp1, prp2                   uint64
	d10, d11, d12, d13, d14, d15 uint32
}

func (e entry) bytes(cid uint16) []byte {
	b := make([]byte, 64)
	le := binary.LittleEndian
	b[0], b[1] = e.op, e.flags
	le.PutUint16(b[2:], cid)
	le.PutUint32(b[4:], e.ns)
	le.PutUint64(b[24:], e.prp1)
	le.PutUint64(b[32:], e.prp2)
	for i, d := range []uint32{e.d10, e.d11, e.d12, e.d13, e.d14, e.d15} {
		le.PutUint32(b[40+4*i:], d)
	}
	return b
}

// put writes a command without ringing.
func (r *rig) put(q int, e entry) uint16 {
	d := &r.sq[q]
	r.cid++
	copy(r.ram[d.sq+uint64(d.tail)*64:], e.bytes(r.cid))
	if d.tail++; d.tail == d.size {
		d.tail = 0
	}
	return r.cid
}

func (r *rig) kick(q int) { r.ring(2*uint64(q), r.sq[q].tail) }

// completion is a completion queue entry.
type completion struct {
	result uint32
	cid    uint16
	status status
	sqid   uint16
	sqhd   uint16
}

// take returns the next completion if there is one, and rings the head doorbell.
func (r *rig) take(q int) (completion, bool) {
	d := &r.sq[q]
	at := d.cq + uint64(d.head)*16
	o, err := r.mem.OrderedSlice(mem.GPA(at), 16)
	r.check(err)
	st := o.LoadUint16(14)
	if st&1 != d.phase {
		return completion{}, false
	}
	le := binary.LittleEndian
	c := completion{le.Uint32(o), le.Uint16(o[12:]), status(st >> 1), le.Uint16(o[10:]), le.Uint16(o[8:])}
	if d.head++; d.head == d.size {
		d.head, d.phase = 0, d.phase^1
	}
	return c, true
}

func (r *rig) wait(q int) completion {
	r.Helper()
	var c completion
	r.until("completion", func() (ok bool) { c, ok = r.take(q); return ok })
	r.ring(2*uint64(q)+1, r.sq[q].head)
	return c
}

// do carries one command out.
func (r *rig) do(q int, e entry) completion {
	r.Helper()
	cid := r.put(q, e)
	r.kick(q)
	c := r.wait(q)
	if c.cid != cid || c.sqid != uint16(q) {
		r.Fatalf("completion of command %d of queue %d, want %d of %d", c.cid, c.sqid, cid, q)
	}
	return c
}

func (r *rig) admin(e entry) completion { r.Helper(); return r.do(0, e) }

// rw is a Read or Write of n blocks at lba.
func rw(op uint8, lba uint64, n int, prp1, prp2 uint64) entry {
	return entry{op: op, ns: 1, prp1: prp1, prp2: prp2, d10: uint32(lba), d11: uint32(lba >> 32), d12: uint32(n - 1)}
}

func newRAM(n int) *fakedisk.RAM { return fakedisk.NewRAM(n) }
