package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/identity"
	"github.com/gvmspawn/gvmspawn/vmm"
)

// TestChooseCID: derivation and errors of vmspawn.md §2.6.
func TestChooseCID(t *testing.T) {
	used := map[uint32]bool{}
	set := func(_ *os.File, cid uint32) error {
		if used[cid] {
			return fmt.Errorf("%w: %d", vmm.ErrCIDInUse, cid)
		}
		used[cid] = true
		return nil
	}
	for i := range uint32(3) {
		if cid, err := chooseCID(nil, 0, "debian", set); err != nil || cid != identity.CID("debian", i) {
			t.Errorf("%d: CID %d, %v", i, cid, err)
		}
	}
	if cid, err := chooseCID(nil, 77, "debian", set); err != nil || cid != 77 {
		t.Errorf("CID %d, %v", cid, err)
	}
	if _, err := chooseCID(nil, 77, "debian", set); err == nil || !strings.Contains(err.Error(), "--vsock-cid: the context ID 77 is in use") {
		t.Errorf("taken: %v", err)
	}
	n := 0
	full := func(_ *os.File, cid uint32) error {
		if n++; n > derivedCIDs {
			return set(nil, cid)
		}
		return vmm.ErrCIDInUse
	}
	if cid, err := chooseCID(nil, 0, "debian", full); err != nil || cid < 3 || cid > 1<<32-2 || n != derivedCIDs+1 {
		t.Errorf("by chance: %d, %v, after %d tries", cid, err, n)
	}
	if _, err := chooseCID(nil, 0, "debian", func(*os.File, uint32) error { return vmm.ErrCIDInUse }); err == nil {
		t.Error("no free CID is no error")
	}
	broken := errors.New("broken")
	if _, err := chooseCID(nil, 0, "debian", func(*os.File, uint32) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
}
