package vmm

import (
	"fmt"

	"github.com/gvmspawn/gvmspawn/vmm/soft"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// newSoft makes the software CPU.
func (m *Machine) newSoft() (vcpu.VM, error) {
	cfg := soft.Config{
		Memory: m.mem, CPUs: m.cfg.CPUs, IO: &m.bus,
		Deterministic: m.cfg.Deterministic, Seed: m.cfg.Seed,
		Log: func(format string, args ...any) { m.log.Debug(fmt.Sprintf(format, args...)) },
	}
	if m.cfg.Deterministic {
		cfg.BootTime = deterministicEpoch
	}
	return soft.New(cfg)
}
