package control

import (
	"context"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/varlink"
)

// Memory is how much memory a machine has, in bytes.
type Memory struct {
	Boot    uint64           `json:"boot"`
	Max     uint64           `json:"max"`
	Target  uint64           `json:"target"`
	Current uint64           `json:"current"`
	Guest   map[string]int64 `json:"guest,omitempty"` // the guest's own numbers
}

const errMemoryRefused = "io.gvmspawn.Machine.MemoryRefused"

func (s *Service) getMemory(ctx context.Context, c *varlink.Call) (any, error) {
	if err := c.Parameters(&struct{}{}); err != nil {
		return nil, err
	}
	m, err := s.m.Memory(ctx)
	if err != nil {
		return nil, &varlink.Error{Name: errNotConnected}
	}
	return m, nil
}

func (s *Service) setMemory(_ context.Context, c *varlink.Call) (any, error) {
	var in struct {
		Size uint64 `json:"size"`
	}
	if err := c.Parameters(&in); err != nil {
		return nil, err
	}
	if err := s.m.SetMemory(in.Size); err != nil {
		return nil, memoryRefused(err)
	}
	return nil, nil
}

func memoryRefused(err error) error {
	return &varlink.Error{Name: errMemoryRefused, Parameters: map[string]any{"reason": err.Error()}}
}

// reclaimed is the answer to ReclaimMemory.
type reclaimed struct {
	Bytes uint64 `json:"reclaimed"`
}

func (s *Service) reclaimMemory(ctx context.Context, c *varlink.Call) (any, error) {
	if err := c.Parameters(&struct{}{}); err != nil {
		return nil, err
	}
	n, err := s.m.ReclaimMemory(ctx)
	if err != nil {
		return nil, memoryRefused(err)
	}
	return reclaimed{n}, nil
}

// GetMemory asks a machine how much memory it has.
func GetMemory(ctx context.Context, socket string) (m Memory, err error) {
	c, err := varlink.Dial(ctx, socket)
	if err != nil {
		return m, err
	}
	defer c.Close()
	err = c.Call(ctx, "io.gvmspawn.Machine.GetMemory", nil, &m)
	return m, err
}

// SetMemory tells a machine how many bytes of memory it should have.
func SetMemory(ctx context.Context, socket string, size uint64) error {
	c, err := varlink.Dial(ctx, socket)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Call(ctx, "io.gvmspawn.Machine.SetMemory", map[string]any{"size": size}, nil)
}

// ReclaimMemory has a machine give its guest's free memory back to the host and returns
// how many bytes.
func ReclaimMemory(ctx context.Context, socket string) (uint64, error) {
	c, err := varlink.Dial(ctx, socket)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	var out reclaimed
	err = c.Call(ctx, "io.gvmspawn.Machine.ReclaimMemory", nil, &out)
	return out.Bytes, err
}
