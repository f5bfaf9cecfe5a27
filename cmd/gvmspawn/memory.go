package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os/signal"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/arg"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/control"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/instance"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/varlink"
	"github.com/gvmspawn/gvmspawn/vmm"
)

// statsTimeout is how long a guest may take to tell its numbers.
const statsTimeout = 2 * time.Second

// memory is what m and its guest say about memory.
func memory(ctx context.Context, m *vmm.Machine) control.Memory {
	i := m.Memory()
	out := control.Memory{Boot: i.Boot, Max: i.Max, Target: i.Target, Current: i.Current}
	ctx, cancel := context.WithTimeout(ctx, statsTimeout)
	defer cancel()
	s, err := m.MemoryStats(ctx)
	if err != nil {
		return out
	}
	out.Guest = map[string]int64{"total": s.Total, "free": s.Free, "available": s.Available, "caches": s.Caches, "swapped-in": s.SwapIn,
		"swapped-out": s.SwapOut, "major-faults": s.MajorFaults, "minor-faults": s.MinorFaults}
	maps.DeleteFunc(out.Guest, func(_ string, n int64) bool { return n < 0 })
	return out
}

// Memory implements control.Machine.
func (c remote) Memory(ctx context.Context) (control.Memory, error) {
	m, err := c.current()
	if err != nil {
		return control.Memory{}, err
	}
	return memory(ctx, m), nil
}

// SetMemory implements control.Machine. The size outlives a reboot.
func (c remote) SetMemory(n uint64) error {
	m, err := c.current()
	if err != nil {
		return err
	}
	if err := m.SetMemory(n); err != nil {
		return err
	}
	c.r.mu.Lock()
	c.r.memory = n
	c.r.mu.Unlock()
	return nil
}

// ReclaimMemory implements control.Machine.
func (c remote) ReclaimMemory(ctx context.Context) (uint64, error) {
	m, err := c.current()
	if err != nil {
		return 0, err
	}
	return m.ReclaimMemory(ctx)
}

// monitorMemory is "info memory" of the monitor.
func monitorMemory(_ *session, m *vmm.Machine, w io.Writer) error {
	writeMemory(w, memory(context.Background(), m))
	return nil
}

func writeMemory(w io.Writer, m control.Memory) {
	for _, row := range []struct {
		name string
		n    uint64
	}{{"at boot", m.Boot}, {"maximum", m.Max}, {"target", m.Target}, {"current", m.Current}} {
		fmt.Fprintf(w, "%14s: %d MiB\n", row.name, row.n>>20)
	}
	for _, k := range slices.Sorted(maps.Keys(m.Guest)) {
		if k == "total" || k == "free" || k == "available" || k == "caches" {
			fmt.Fprintf(w, "%14s: %d MiB\n", "guest "+k, m.Guest[k]>>20)
		} else {
			fmt.Fprintf(w, "%14s: %d\n", k, m.Guest[k])
		}
	}
}

// machineMemory is "gvmspawn memory NAME [BYTES]".
func (c *command) machineMemory(args []string) (int, error) {
	if len(args) > 2 {
		return exitFailure, errors.New("memory needs the name of a machine and, to change it, a size")
	}
	m, dir, err := machine("memory", args)
	if err != nil {
		return exitFailure, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), queryTimeout+statsTimeout)
	defer cancel()
	socket := filepath.Join(dir, instance.ControlSocket)
	if len(args) == 1 {
		info, err := control.GetMemory(ctx, socket)
		if err != nil {
			return exitFailure, fmt.Errorf("machine '%s' does not say how much memory it has: %w", m.Name, err)
		}
		writeMemory(c.stdout, info)
		return 0, nil
	}
	size, err := arg.Size(args[1])
	if err != nil {
		return exitFailure, fmt.Errorf("the size of the memory: %w", err)
	}
	if err := control.SetMemory(ctx, socket, size); err != nil {
		return exitFailure, fmt.Errorf("cannot change the memory of machine '%s': %w", m.Name, reason(err))
	}
	return 0, nil
}

// reason is what a machine says why it refuses, or the error itself.
func reason(err error) error {
	var refused *varlink.Error
	if errors.As(err, &refused) && refused.Parameters["reason"] != nil {
		return fmt.Errorf("%v", refused.Parameters["reason"])
	}
	return err
}

// reclaimMemory is "gvmspawn reclaim-memory NAME".
func (c *command) reclaimMemory(args []string) (int, error) {
	if len(args) > 1 {
		return exitFailure, errors.New("reclaim-memory needs the name of a machine")
	}
	m, dir, err := machine("reclaim-memory", args)
	if err != nil {
		return exitFailure, err
	}
	ctx, cancel := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer cancel()
	n, err := control.ReclaimMemory(ctx, filepath.Join(dir, instance.ControlSocket))
	if err != nil {
		return exitFailure, fmt.Errorf("cannot reclaim the free memory of machine '%s': %w", m.Name, reason(err))
	}
	fmt.Fprintf(c.stdout, "%d MiB\n", n>>20)
	return 0, nil
}
