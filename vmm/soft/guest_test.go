package soft

import (
	"encoding/binary"
	"encoding/hex"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/mem"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// portEnd is the port that ends a test guest.
const portEnd = 0xf4

// guest is a machine for hand-written code: 2 MiB of RAM, identity-mapped by a
// large page at 0 in 64-bit mode, tables at 0x1000 to 0x4000, its stack below
// 0x8000 and code at 0x8000.
type guest struct {
	t    *testing.T
	mem  *mem.Memory
	ram  []byte
	vm   *VM
	out  []uint32 // written to portEnd + 1
	in   []uint32 // what reads of that port get
	read func(addr uint64, size int) uint64
	// wrote has the bytes that a device got.
	wrote []byte

	mu    sync.Mutex
	ended atomic.Bool
}

func newGuest(t *testing.T, cfg Config) *guest {
	t.Helper()
	return newGuestWith(t, cfg, nil)
}

// newGuestWith lets more add memory.
func newGuestWith(t *testing.T, cfg Config, more func(*mem.Memory)) *guest {
	t.Helper()
	g := &guest{t: t, mem: mem.New()}
	r, err := g.mem.Add("RAM", 0, 2<<20, mem.RAM)
	if err != nil {
		t.Fatal(err)
	}
	if more != nil {
		more(g.mem)
	}
	cfg.Memory, cfg.IO = g.mem, g
	if g.vm, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	g.ram = r.Bytes()
	t.Cleanup(func() { g.vm.Close(); g.mem.Close() })
	return g
}

func (g *guest) PortIn(port uint16, size int) uint32 {
	if port != portEnd+1 || len(g.in) == 0 {
		return 0
	}
	v := g.in[0]
	g.in = g.in[1:]
	return v
}

func (g *guest) PortOut(port uint16, size int, v uint32) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch port {
	case portEnd:
		g.end()
	case portEnd + 1:
		g.out = append(g.out, v)
	}
}

func (g *guest) MMIORead(addr uint64, size int) uint64 {
	if g.read != nil {
		return g.read(addr, size)
	}
	return ^uint64(0)
}

func (g *guest) MMIOWrite(addr uint64, size int, v uint64) {
	g.wrote = append(g.wrote, binary.LittleEndian.AppendUint64(nil, v)[:size]...)
}

func (g *guest) end() {
	g.ended.Store(true)
	for _, c := range g.vm.cpus {
		c.Kick()
	}
}

func (g *guest) put(at uint64, code string) {
	g.t.Helper()
	b, err := hex.DecodeString(code)
	if err != nil {
		g.t.Fatal(err)
	}
	copy(g.ram[at:], b)
}

func (g *guest) word(at uint64) uint64       { return binary.LittleEndian.Uint64(g.ram[at:]) }
func (g *guest) setWord(at uint64, v uint64) { binary.LittleEndian.PutUint64(g.ram[at:], v) }

// start makes CPU i ready to run at rip in the given mode (see fuzzMode).
func (g *guest) start(i int, mode uint8, rip uint64) *CPU {
	c := g.vm.cpus[i]
	fuzzMode(c, g.ram, mode, false)
	c.s.RIP = rip
	c.s.R[vcpu.RSP] = 0x8000 - uint64(i)*0x200
	c.waiting, c.halted = false, false
	return c
}

// run runs all CPUs until the guest ends itself; the exits are returned.
func (g *guest) run() []vcpu.Exit {
	g.t.Helper()
	limit := time.AfterFunc(20*time.Second, func() {
		g.t.Error("the guest does not end")
		g.end()
	})
	defer limit.Stop()
	exits := make([]vcpu.Exit, len(g.vm.cpus))
	var wg sync.WaitGroup
	for i, c := range g.vm.cpus {
		wg.Go(func() {
			for {
				exits[i], _ = c.Run()
				if exits[i].Reason != vcpu.ExitKick {
					g.end()
				}
				if g.ended.Load() {
					return
				}
			}
		})
	}
	wg.Wait()
	return exits
}

// TestCloseWithPendingEvents: what was on its way to a CPU when the machine was
// closed, such as a timer's interrupt, gets nowhere and harms nobody.
func TestCloseWithPendingEvents(t *testing.T) {
	m := mem.New()
	defer m.Close()
	if _, err := m.Add("RAM", 0, 1<<20, mem.RAM); err != nil {
		t.Fatal(err)
	}
	vm, err := New(Config{Memory: m, CPUs: 2, IO: &testUART{}})
	if err != nil {
		t.Fatal(err)
	}
	const nmi = 4 << 8
	vm.apics.Deliver(0xfee0_0000, nmi)
	if err := vm.Close(); err != nil {
		t.Fatal(err)
	}
	vm.apics.Deliver(0xfee0_1000, nmi)
}
