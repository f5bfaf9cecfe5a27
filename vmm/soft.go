package vmm

import (
	"fmt"
	"os"

	"github.com/gvmspawn/gvmspawn/vmm/soft"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// newSoft makes the software CPU. GVMSPAWN_TRACE in the environment, a list of
// exec, int, io and mmu, makes it write what it does to standard error.
func (m *Machine) newSoft() (vcpu.VM, error) {
	cfg := soft.Config{
		Memory: m.mem, CPUs: m.cfg.CPUs, Sockets: m.cfg.Sockets, Threads: m.cfg.Threads, IO: &m.bus,
		Deterministic: m.cfg.Deterministic, Seed: m.cfg.Seed,
		Log:  func(format string, args ...any) { m.log.Debug(fmt.Sprintf(format, args...)) },
		Warn: func(format string, args ...any) { m.log.Warn(fmt.Sprintf(format, args...)) },
	}
	if m.cfg.Deterministic {
		cfg.BootTime = deterministicEpoch
	}
	if s := os.Getenv("GVMSPAWN_TRACE"); s != "" {
		var err error
		if cfg.Tracing, err = soft.ParseTrace(s); err != nil {
			return nil, fmt.Errorf("GVMSPAWN_TRACE: %w", err)
		}
		cfg.Trace = func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\r\n", args...) }
	}
	return soft.New(cfg)
}
