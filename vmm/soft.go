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
	if m.cfg.Firmware != nil {
		cfg.PhysBits = m.physBits()
	}
	if io := m.managed(); io != nil {
		cfg.SMM = &soft.SMM{IO: io}
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

// missingFeatures says, when a program of the guest has asked for a newer level of
// x86-64, which one this machine lacks (x86-64 psABI §3.1.1).
func (m *Machine) missingFeatures() string {
	s, ok := m.vm.(*soft.VM)
	switch {
	case !ok:
		return "programs of the guest need a newer x86-64 level than the host's CPU has, which is the guest's"
	case s.Level() == 3:
		return "programs of the guest need x86-64-v4 (AVX-512), but the software CPU has x86-64-v3"
	case s.Level() == 1:
		return "programs of the guest need x86-64-v2 (SSSE3, SSE4.1, SSE4.2) or newer, for which the software CPU needs a host that has it"
	case soft.HostHasV3():
		return "programs of the guest need x86-64-v3 (AVX, AVX2, BMI1, BMI2, F16C, FMA, LZCNT, MOVBE), but the software CPU has x86-64-v2, because GVMSPAWN_CPU=v2 in the environment says so"
	}
	return "programs of the guest need x86-64-v3 (AVX, AVX2, BMI1, BMI2, F16C, FMA, LZCNT, MOVBE), which neither the software CPU has nor the host's to lend it"
}
