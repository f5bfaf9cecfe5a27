package soft

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// firmwareIO ends the run when the firmware has looked for the host bridge and
// masked the 8259s.
type firmwareIO struct {
	ports map[uint16]int
	done  func()
}

func (f *firmwareIO) PortIn(port uint16, size int) uint32 { return ^uint32(0) }

func (f *firmwareIO) PortOut(port uint16, size int, v uint32) {
	f.ports[port]++
	if f.ports[0xcf8] > 0 && f.ports[0xa1] > 0 {
		f.done()
	}
}

func (f *firmwareIO) MMIORead(addr uint64, size int) uint64     { return ^uint64(0) }
func (f *firmwareIO) MMIOWrite(addr uint64, size int, v uint64) {}

// TestResetVector runs OVMF from the reset vector (SDM vol. 3A §10.1.4): real
// mode at the top of 4 GiB, protected mode, its SEC phase on a stack in RAM.
func TestResetVector(t *testing.T) {
	image, err := os.ReadFile(filepath.Join(guesttest.Asset(t, "ovmf"), "usr/share/OVMF/OVMF_CODE_4M.fd"))
	if err != nil {
		t.Skip(err)
	}
	m := mem.New()
	defer m.Close()
	if _, err := m.Add("RAM", 0, 64<<20, mem.RAM); err != nil {
		t.Fatal(err)
	}
	rom, err := m.Add("firmware", mem.GPA(1<<32-len(image)), uint64(len(image)), mem.ROM)
	if err != nil {
		t.Fatal(err)
	}
	copy(rom.Bytes(), image)
	io := &firmwareIO{ports: map[uint16]int{}}
	vm, err := New(Config{Memory: m, CPUs: 1, IO: io})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	c := vm.cpus[0]
	io.done = c.Kick
	limit := time.AfterFunc(20*time.Second, c.Kick)
	defer limit.Stop()
	if ex, _ := c.Run(); ex.Reason != vcpu.ExitKick {
		t.Fatalf("exit %v: %s", ex.Reason, ex.Detail)
	}
	if !c.protected() || c.mode != decode.Mode32 || c.s.R[vcpu.RSP] < 1<<20 || c.s.R[vcpu.RSP] > 64<<20 {
		t.Errorf("mode %d, CR0 %#x, ESP %#x", c.mode, c.s.CR0, c.s.R[vcpu.RSP])
	}
	if io.ports[0xa1] == 0 || io.ports[0xcf8] == 0 {
		t.Errorf("SEC did not mask the 8259s and look for the host bridge: ports %v", io.ports)
	}
}
