package lockstep

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/mem"
	"github.com/gvmspawn/gvmspawn/vmm/soft"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// loop is: mov ecx, 2000000; at 0x8005: inc eax; rol rdx, 3; add rdx, rax; mov [rbx], rdx; loop;
// out 0xf4, al; jmp to itself.
const (
	loop    = "\xb9\x80\x84\x1e\x00\xff\xc0\x48\xc1\xc2\x03\x48\x01\xc2\x48\x89\x13\xe2\xf2\xe6\xf4\xeb\xfe"
	loopTop = 0x8005
)

type ender struct{ kick func() }

func (e ender) PortIn(uint16, int) uint32     { return 0 }
func (e ender) PortOut(uint16, int, uint32)   { e.kick() }
func (e ender) MMIORead(uint64, int) uint64   { return 0 }
func (e ender) MMIOWrite(uint64, int, uint64) {}

// run runs the loop. tamper changes the machine at a checkpoint.
func run(t *testing.T, interpreter bool, tamper func(*soft.VM, *soft.Checkpoint)) Runner {
	return func(from, every uint64, f func(*soft.Checkpoint) bool) error {
		m := mem.New()
		defer m.Close()
		r, err := m.Add("RAM", 0, 1<<20, mem.RAM)
		if err != nil {
			return err
		}
		copy(r.Bytes()[0x8000:], loop)
		for i, v := range []uint64{0x2003, 0x3003, 0x83} { // a page of 2 MiB at 0
			binary.LittleEndian.PutUint64(r.Bytes()[0x1000*(i+1):], v)
		}
		e := &ender{}
		vm, err := soft.New(soft.Config{Memory: m, CPUs: 1, IO: e, Deterministic: true, NoTranslator: interpreter})
		if err != nil {
			return err
		}
		defer vm.Close()
		cpu := vm.VCPU(0)
		e.kick = cpu.Kick
		data := vcpu.Segment{Limit: 0xffffffff, Attr: 0xc093}
		regs := vcpu.Registers{RIP: 0x8000, RFLAGS: 2, CR0: 0x80000033, CR3: 0x1000, CR4: 0x620, EFER: 0x500,
			Seg: [6]vcpu.Segment{data, {Limit: 0xffffffff, Attr: 0xa09b}, data, data, data, data}}
		regs.GPR[vcpu.RBX], regs.GPR[vcpu.RSP] = 0x9000, 0x8000
		if err := cpu.SetRegisters(&regs); err != nil {
			return err
		}
		vm.Checkpoints(from, every, func(c *soft.Checkpoint) bool {
			ok := f(c)
			if tamper != nil {
				tamper(vm, c)
			}
			return ok
		})
		_, err = cpu.Run()
		return err
	}
}

func TestSame(t *testing.T) {
	d, n, err := Find(run(t, false, nil), run(t, true, nil))
	if err != nil || d != nil {
		t.Fatalf("%v, %v", d, err)
	}
	if n < 6_000_000 {
		t.Errorf("only %d instructions were compared", n)
	}
}

// TestFinds: a bit that flips in one run is found in the very block behind it.
func TestFinds(t *testing.T) {
	const at = 5_000_000
	flip := func(vm *soft.VM, c *soft.Checkpoint) {
		if c.Count >= at {
			vm.Tamper(vcpu.RDX, c.Registers.GPR[vcpu.RDX]^1)
		}
	}
	d, _, err := Find(run(t, false, nil), run(t, true, flip))
	if err != nil || d == nil {
		t.Fatalf("%v, %v", d, err)
	}
	if d.Every != 1 || d.Last.Count < at || d.Last.Registers.RIP != loopTop || d.B.Count-d.Last.Count > 10 {
		t.Errorf("found at %d, RIP %#x, with checkpoints every %d", d.Last.Count, d.Last.Registers.RIP, d.Every)
	}
	if s := d.String(); !strings.Contains(s, "rdx 0x") || !strings.Contains(s, "code ff c0 48 c1 c2 03") {
		t.Errorf("the report is\n%s", s)
	}
}
