package vmm

import (
	"context"
	"errors"
	"fmt"

	"github.com/gvmspawn/gvmspawn/devices/pci"
	"github.com/gvmspawn/gvmspawn/virtio/balloon"
	"github.com/gvmspawn/gvmspawn/virtio/memdev"
	"github.com/gvmspawn/gvmspawn/vmm/layout"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

const (
	// pluggableAlign is the largest block in which Linux adds memory to itself
	// on x86 (arch/x86/mm/init_64.c, probe_memory_block_size).
	pluggableAlign = 2 * layout.GiB
	// pluggableUnit is the smallest: a region that ends within one could not be
	// used to its end.
	pluggableUnit = 128 * layout.MiB
)

// addPluggable reserves the memory that can be plugged in later, above all RAM.
// KVM wants all memory before the machine runs; none of it is touched.
func (m *Machine) addPluggable() error {
	if m.cfg.RAMMax <= m.cfg.RAM {
		return nil
	}
	start := (max(uint64(m.mem.RAMEnd()), layout.HighRAMStart) + pluggableAlign - 1) &^ (pluggableAlign - 1)
	size := (m.cfg.RAMMax - m.cfg.RAM + pluggableUnit - 1) &^ (pluggableUnit - 1)
	var err error
	m.slots, err = m.mem.Add("hotplug memory", mem.GPA(start), size, mem.Pluggable)
	return err
}

// memoryEnd is the first address above all memory that is or may be plugged, and
// above persistent memory.
func (m *Machine) memoryEnd() mem.GPA {
	end := m.mem.RAMEnd()
	if m.slots != nil {
		end = m.slots.End()
	}
	for _, p := range m.pmem {
		end = p.window.End()
	}
	return end
}

func (m *Machine) addMemoryDevice(host *pci.Host) error {
	if m.slots == nil {
		return nil
	}
	dev, err := memdev.New(memdev.Config{Region: m.slots, Addr: uint64(m.slots.Base), BlockSize: mem.BlockSize})
	if err != nil {
		return err
	}
	m.memdev = dev
	return m.plug(host, "virtio-mem", dev)
}

// MemoryInfo is how much memory a guest has, in bytes.
type MemoryInfo struct {
	// Boot is what it started with, Max the most that it can get.
	Boot, Max uint64
	// Target is what it should have, Current what it has: it follows in its own
	// time, and may be unable to.
	Target, Current uint64
}

// Memory tells how much memory the guest has.
func (m *Machine) Memory() MemoryInfo {
	i := MemoryInfo{Boot: m.cfg.RAM, Max: max(m.cfg.RAM, m.cfg.RAMMax)}
	i.Target = i.Boot - min(m.balloon.Target(), i.Boot)
	i.Current = i.Boot - min(m.balloon.Actual(), i.Boot)
	if m.memdev != nil {
		i.Target += m.memdev.Requested()
		i.Current += m.memdev.Plugged()
	}
	return i
}

// SetMemory says how much memory the guest should have, in bytes: above
// Config.RAM, up to Config.RAMMax, memory is plugged in; below it the balloon
// takes some away. Guests without drivers for that keep what they have.
func (m *Machine) SetMemory(n uint64) error {
	i := m.Memory()
	switch {
	case m.runner.over():
		return ErrNotRunning
	case n < MinRAM:
		return fmt.Errorf("%d KiB are too little memory: a guest needs at least %d MiB", n>>10, MinRAM>>20)
	case n > i.Max && m.memdev == nil:
		return fmt.Errorf("%d MiB are more than the %d MiB of the machine: only with --ram=BYTES:MAXBYTES it can get more", n>>20, i.Max>>20)
	case n > i.Max:
		return fmt.Errorf("%d MiB are more than the %d MiB that --ram= allows", n>>20, i.Max>>20)
	}
	m.balloon.SetTarget(i.Boot - min(n, i.Boot))
	if m.memdev == nil {
		return nil
	}
	return m.memdev.SetRequested(max(n, i.Boot) - i.Boot)
}

// MemoryStats are the guest's own numbers in bytes, or events since its boot;
// -1 where it told none.
type MemoryStats = balloon.Stats

// ErrNoStats is returned by MemoryStats if the guest's kernel has no driver for
// the balloon, or one that tells no statistics.
var ErrNoStats = errors.New("the guest tells nothing about its memory")

// MemoryStats asks the guest and waits for its answer.
func (m *Machine) MemoryStats(ctx context.Context) (MemoryStats, error) {
	s, err := m.balloon.Stats(ctx)
	if errors.Is(err, balloon.ErrInactive) || errors.Is(err, balloon.ErrUnsupported) {
		return s, ErrNoStats
	}
	return s, err
}
