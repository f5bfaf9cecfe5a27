package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const pciDevices = "/sys/bus/pci/devices"

// pci takes the functions with the given device IDs ("0x1044") away from their
// drivers and treats them badly.
func pci(ids []string) error {
	entries, err := os.ReadDir(pciDevices)
	if err != nil {
		return err
	}
	done := 0
	for _, e := range entries {
		dir := filepath.Join(pciDevices, e.Name())
		id, err := os.ReadFile(filepath.Join(dir, "device"))
		if err != nil {
			return err
		}
		for _, want := range ids {
			if strings.TrimSpace(string(id)) == want {
				done++
				if err := abuse(dir, e.Name()); err != nil {
					return fmt.Errorf("%s: %w", want, err)
				}
			}
		}
	}
	if done != len(ids) {
		return fmt.Errorf("%d functions of %d", done, len(ids))
	}
	return nil
}

// abuse does all that can be done to a function: its registers as a driver
// would, but wrongly; random accesses of all sizes; its configuration space.
func abuse(dir, name string) error {
	if err := os.WriteFile(filepath.Join(dir, "driver/unbind"), []byte(name), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	config, err := os.OpenFile(filepath.Join(dir, "config"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer config.Close()
	if _, err := config.WriteAt([]byte{6, 0}, 4); err != nil { // memory space, bus master
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, "resource0"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, int(fi.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map BAR 0: %w", err)
	}
	common, notify, err := findParts(config)
	if err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(3, 4))
	badDriver(window(m), common, notify, r)
	randomAccess(window(m), r)
	if err := unix.Munmap(m); err != nil {
		return err
	}
	return randomConfig(config, r)
}

// findParts walks the capabilities to the common and the notification part of
// BAR 0 (virtio 1.2 §4.1.4).
func findParts(config *os.File) (common, notify int, err error) {
	b := make([]byte, 256)
	if _, err := config.ReadAt(b, 0); err != nil {
		return 0, 0, err
	}
	common, notify = -1, -1
	for p, n := int(b[0x34]), 0; p != 0 && n < 48; p, n = int(b[p+1]), n+1 {
		if b[p] != 9 || p > 240 {
			continue
		}
		at := int(binary.LittleEndian.Uint32(b[p+8:]))
		switch b[p+3] {
		case 1:
			common = at
		case 2:
			notify = at
		}
	}
	if common < 0 || notify < 0 {
		return 0, 0, errors.New("no virtio capabilities")
	}
	return common, notify, nil
}

// Common configuration (virtio 1.2 §4.1.4.3).
const (
	featureSelect = 0x08
	featureGuest  = 0x0c
	deviceStatus  = 0x14
	queueSelect   = 0x16
	queueSize     = 0x18
	queueVector   = 0x1a
	queueEnable   = 0x1c
	queueDesc     = 0x20
)

// badDriver brings the device up a thousand times with queues in impossible
// places and rings the bell.
func badDriver(w window, common, notify int, r *rand.Rand) {
	// The RAM among them is what this guest does not use itself.
	places := []uint64{0, 1, 0xa_0000, 0xfee0_0000, 0xc000_0000, 1 << 32, 1 << 52, 1<<64 - 8, r.Uint64()}
	for i := range 1000 {
		w.write8(common+deviceStatus, 0)
		for _, s := range []uint8{1, 3} {
			w.write8(common+deviceStatus, s)
		}
		w.write32(common+featureSelect, 1)
		w.write32(common+featureGuest, 1) // VIRTIO_F_VERSION_1
		w.write8(common+deviceStatus, 11)
		w.write16(common+queueSelect, uint16(i%3))
		w.write16(common+queueSize, uint16(1)<<(i%9))
		w.write16(common+queueVector, uint16(r.Uint32()))
		for part := range 3 {
			place := places[r.IntN(len(places))]
			w.write32(common+queueDesc+8*part, uint32(place))
			w.write32(common+queueDesc+8*part+4, uint32(place>>32))
		}
		w.write16(common+queueEnable, 1)
		w.write8(common+deviceStatus, 15)
		for q := range 4 {
			w.write16(notify+4*q, uint16(q))
		}
		if i%100 == 0 {
			w.write8(common+deviceStatus, uint8(r.Uint32()))
		}
	}
	w.write8(common+deviceStatus, 0)
}

// randomAccess reads and writes all of a window in all sizes and alignments.
func randomAccess(w window, r *rand.Rand) {
	for range 30000 {
		off, v := r.IntN(len(w)-8), r.Uint64()
		switch r.IntN(8) {
		case 0:
			w.read8(off)
		case 1:
			w.read16(off &^ 1)
		case 2:
			w.read32(off &^ 3)
		case 3:
			w.read64(off &^ 7)
		case 4:
			w.write8(off, uint8(v))
		case 5:
			w.write16(off, uint16(v))
		case 6:
			w.write32(off, uint32(v))
		case 7:
			w.write64(off, v)
		}
	}
}

// memory maps physical addresses and accesses them at random.
func memory(address, size string) error {
	at, err := strconv.ParseUint(address, 0, 63)
	if err != nil {
		return err
	}
	n, err := strconv.ParseUint(size, 0, 31)
	if err != nil {
		return err
	}
	f, err := os.OpenFile("/dev/mem", os.O_RDWR|unix.O_SYNC, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), int64(at), int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map %s: %w", address, err)
	}
	randomAccess(window(m), rand.New(rand.NewPCG(5, 6)))
	return unix.Munmap(m)
}

// randomConfig writes all of the configuration space, with every command
// register and BAR that comes out of it, and leaves the function switched off.
func randomConfig(config *os.File, r *rand.Rand) error {
	fi, err := config.Stat()
	if err != nil {
		return err
	}
	b := make([]byte, 4)
	for i := range 4000 {
		size := 1 << (i % 3)
		off := int64(r.IntN(int(fi.Size())/size) * size)
		if i%2 == 0 {
			off &= 0xff // where the registers are
		}
		if _, err := config.ReadAt(b[:size], off); err != nil {
			return fmt.Errorf("read configuration at %#x: %w", off, err)
		}
		binary.LittleEndian.PutUint32(b, r.Uint32())
		if i%5 == 0 {
			copy(b, "\xff\xff\xff\xff")
		}
		if _, err := config.WriteAt(b[:size], off); err != nil {
			return fmt.Errorf("write configuration at %#x: %w", off, err)
		}
	}
	_, err = config.WriteAt([]byte{0, 0}, 4)
	return err
}
