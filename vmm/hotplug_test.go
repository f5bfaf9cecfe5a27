package vmm

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
	"github.com/gvmspawn/gvmspawn/vmm/layout"
)

// rawDisk makes an image.
func rawDisk(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 1<<20)); err != nil {
		t.Fatal(err)
	}
	return path
}

// hotplugged is a machine that does not run: the test does what its guest would.
type hotplugged struct {
	*Machine
	t    *testing.T
	gone chan string
}

func newHotplugged(t *testing.T) *hotplugged {
	h := &hotplugged{t: t, gone: make(chan string, 100)}
	var err error
	h.Machine, err = New(Config{
		Name: "hotplug", CPUs: 2, RAM: 128 << 20, Accel: AccelSoft,
		Boot: Boot{Kernel: guesttest.KernelAsset(t, "kernel-trixie").Path},
		Disks: []Disk{
			{ID: "root", Path: rawDisk(t, "root")},
			{ID: "extra", Path: rawDisk(t, "extra"), Bus: DiskNVMe, Removable: true},
		},
		DiskRemoved: func(id string) { h.gone <- id },
	})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *hotplugged) read(off uint64) uint32 {
	return uint32(h.bus.MMIORead(layout.PCIHotplug+off, 4))
}

// device is the vendor and device ID in a slot of the mask.
func (h *hotplugged) device(mask uint32) uint32 {
	slot := uint64(0)
	for mask>>slot != 1 {
		slot++
	}
	return uint32(h.bus.MMIORead(layout.ECAM+slot<<15, 4))
}

func (h *hotplugged) wantGone(id string) {
	h.t.Helper()
	select {
	case got := <-h.gone:
		if got != id {
			h.t.Errorf("%s has gone, want %s", got, id)
		}
	case <-time.After(10 * time.Second):
		h.t.Fatalf("%s stays", id)
	}
}

// TestHotplugDisks: disks of each type come, and go when the guest ejects them;
// names are theirs alone, and an image is free again when its disk has gone.
func TestHotplugDisks(t *testing.T) {
	h := newHotplugged(t)
	image := rawDisk(t, "hot")
	for bus, id := range map[DiskBus]uint32{DiskVirtioBlk: 0x10421af4, DiskVirtioSCSI: 0x10481af4, DiskCDROM: 0x10481af4, DiskNVMe: 0x11f01af4} {
		if err := h.AddDisk(Disk{ID: "hot", Path: image, Bus: bus}); err != nil {
			t.Fatal(err)
		}
		// The event device tells, and reading takes the event.
		if ev := h.bus.MMIORead(layout.GED, 4); ev != 1<<3 {
			t.Errorf("events %#x", ev)
		}
		up := h.read(0)
		if up == 0 || up&(up-1) != 0 || h.device(up) != id {
			t.Fatalf("slots %#x", up)
		}
		if err := h.AddDisk(Disk{ID: "hot", Path: rawDisk(t, "other")}); !errors.Is(err, ErrDiskExists) {
			t.Errorf("the name again: %v", err)
		}
		var busy *DiskInUseError
		if err := h.AddDisk(Disk{ID: "again", Path: image, Bus: DiskVirtioBlk}); !errors.As(err, &busy) {
			t.Errorf("the image again: %v", err)
		}
		if err := h.RemoveDisk("hot"); err != nil {
			t.Error(err)
		}
		if down := h.read(4); down != up {
			t.Errorf("slots %#x are to go, want %#x", down, up)
		}
		h.bus.MMIOWrite(layout.PCIHotplug+8, 4, uint64(up))
		h.wantGone("hot")
		if h.device(up) != 0xffff_ffff {
			t.Error("still there")
		}
	}
	if err := h.RemoveDisk("hot"); !errors.Is(err, ErrNoDisk) {
		t.Errorf("a disk that has gone: %v", err)
	}
	if err := h.RemoveDisk("root"); !errors.Is(err, ErrDiskIsFixed) {
		t.Errorf("the root: %v", err)
	}
	if err := h.AddDisk(Disk{ID: "bad", Path: "/nonexistent"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no image: %v", err)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if err := h.AddDisk(Disk{ID: "late", Path: image}); err == nil {
		t.Error("a disk for a closed machine")
	}
}

// TestHotplugFull: the bus has places for so many, and all of them close with
// the machine, whatever the guest thinks of that.
func TestHotplugFull(t *testing.T) {
	h := newHotplugged(t)
	n := 0
	var err error
	for ; err == nil && n < 40; n++ {
		err = h.AddDisk(Disk{ID: string(rune('A' + n)), Path: rawDisk(t, "hot")})
	}
	if n < 10 || n == 40 {
		t.Errorf("%d disks, %v", n, err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { h.bus.MMIOWrite(layout.PCIHotplug+8, 4, 0xffff_ffff) })
	wg.Go(func() { _ = h.AddDisk(Disk{ID: "z", Path: rawDisk(h.t, "hot")}) })
	wg.Wait()
	if err := h.Close(); err != nil {
		t.Error(err)
	}
}
