// Package virtiommio makes a virtio device a block of memory-mapped registers:
// virtio over MMIO, version 2 (not the legacy layout). Document: virtio 1.2 §4.2.
//
// A guest finds it by ACPI (_HID "LNRO0005", a memory range of Size bytes and
// an interrupt) or by the kernel parameter virtio_mmio.device=4K@BASE:GSI.
package virtiommio

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/virtq"
	"github.com/gvmspawn/gvmspawn/vmm/bus"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// Size is the length of the register block in bytes, configuration space included.
const Size = 0x1000

// Registers (§4.2.2).
const (
	regMagicValue        = 0x000
	regVersion           = 0x004
	regDeviceID          = 0x008
	regVendorID          = 0x00c
	regDeviceFeatures    = 0x010
	regDeviceFeaturesSel = 0x014
	regDriverFeatures    = 0x020
	regDriverFeaturesSel = 0x024
	regQueueSel          = 0x030
	regQueueNumMax       = 0x034
	regQueueNum          = 0x038
	regQueueReady        = 0x044
	regQueueNotify       = 0x050
	regInterruptStatus   = 0x060
	regInterruptACK      = 0x064
	regStatus            = 0x070
	regQueueDescLow      = 0x080
	regQueueDescHigh     = 0x084
	regQueueDriverLow    = 0x090
	regQueueDriverHigh   = 0x094
	regQueueDeviceLow    = 0x0a0
	regQueueDeviceHigh   = 0x0a4
	regSHMSel            = 0x0ac
	regSHMLenLow         = 0x0b0
	regSHMLenHigh        = 0x0b4
	regSHMBaseLow        = 0x0b8
	regSHMBaseHigh       = 0x0bc
	regConfigGeneration  = 0x0fc
	regConfig            = 0x100

	magicValue = 0x74726976 // "virt"
	version    = 2
	vendorID   = 0x1af4

	interruptQueue  = 1 << 0
	interruptConfig = 1 << 1
)

// Options of a device; the zero value is good.
type Options struct {
	// Features are ring features to offer beside those that are always there.
	Features virtio.Features
	// SharedMemory gives the guest physical address of each shared memory
	// region, by its ID. A region without one is not shown to the driver.
	SharedMemory map[uint8]mem.GPA
	// Log is told why the device stopped, at most once a second.
	Log func(error)
}

// Device is a virtio device behind MMIO registers; it implements bus.Device.
type Device struct {
	core   *virtio.Core
	wires  bus.Wires
	line   bus.Line
	shared map[uint8]region

	deviceSelect atomic.Uint32
	driverSelect atomic.Uint32
	queueSelect  atomic.Uint32
	shmSelect    atomic.Uint32

	mu      sync.Mutex // guards pending and orders changes of the line
	pending uint32     // InterruptStatus
}

// region is a shared memory region with its place.
type region struct{ base, size uint64 }

// New returns the registers of the device. Its queues lie in m; wires makes
// its doorbells and the interrupt line of gsi.
func New(name string, dev virtio.Device, m *mem.Memory, wires bus.Wires, gsi uint32, o Options) *Device {
	d := &Device{wires: wires, line: wires.NewLine(gsi), shared: make(map[uint8]region)}
	if s, ok := dev.(virtio.SharedMemoryDevice); ok {
		for _, r := range s.SharedMemory() {
			if base, ok := o.SharedMemory[r.ID]; ok {
				d.shared[r.ID] = region{uint64(base), r.Size}
			} else if o.Log != nil {
				o.Log(fmt.Errorf("virtio-mmio %s: shared memory region %d has no address", name, r.ID))
			}
		}
	}
	d.core = virtio.NewCore(dev, m, wiring{d}, o.Features, o.Log)
	return d
}

// Core is the device's transport-independent half.
func (d *Device) Core() *virtio.Core { return d.core }

// Reset brings the device into its power-on state; no CPU runs.
func (d *Device) Reset() { d.core.Reset() }

// Close resets the device for good.
func (d *Device) Close() { d.core.Close() }

// Read reads a register or the configuration space. §4.2.2.2: "The driver MUST
// only use 32 bit wide and aligned reads and writes to access the control
// registers"; others read as ones.
func (d *Device) Read(off uint64, size int) uint64 {
	if off >= regConfig {
		return d.core.ReadConfig(off-regConfig, size)
	}
	if size != 4 || off%4 != 0 {
		return bus.Ones(size)
	}
	return uint64(d.read(off))
}

// ring is the selected queue; one that does not exist has size 0 (§4.2.2.1).
func (d *Device) ring() virtio.Ring {
	r, _ := d.core.Ring(d.queueSelect.Load())
	return r
}

func (d *Device) read(reg uint64) uint32 {
	switch reg {
	case regMagicValue:
		return magicValue
	case regVersion:
		return version
	case regDeviceID:
		return uint32(d.core.Device().Type())
	case regVendorID:
		return vendorID
	case regDeviceFeatures:
		return d.core.DeviceFeatures(d.deviceSelect.Load())
	case regQueueNumMax:
		return uint32(d.ring().Max)
	case regQueueReady:
		if d.ring().Enabled {
			return 1
		}
	case regInterruptStatus:
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.pending
	case regStatus:
		return uint32(d.core.Status())
	case regConfigGeneration:
		return d.core.Generation()
	case regSHMLenLow, regSHMLenHigh, regSHMBaseLow, regSHMBaseHigh:
		return d.readSharedMemory(reg)
	}
	return 0 // write-only and reserved registers
}

// readSharedMemory reads a register of the selected region. §4.2.2.1: for one
// that does not exist, length and base read as all ones.
func (d *Device) readSharedMemory(reg uint64) uint32 {
	r := region{^uint64(0), ^uint64(0)}
	if id := d.shmSelect.Load(); id <= 0xff {
		if s, ok := d.shared[uint8(id)]; ok {
			r = s
		}
	}
	switch reg {
	case regSHMLenLow:
		return uint32(r.size)
	case regSHMLenHigh:
		return uint32(r.size >> 32)
	case regSHMBaseLow:
		return uint32(r.base)
	default:
		return uint32(r.base >> 32)
	}
}

// Write writes a register or the configuration space.
func (d *Device) Write(off uint64, size int, v uint64) {
	switch {
	case off >= regConfig:
		d.core.WriteConfig(off-regConfig, size, v)
	case size == 4 && off%4 == 0:
		d.write(off, uint32(v))
	}
}

func (d *Device) write(reg uint64, v uint32) {
	switch reg {
	case regDeviceFeaturesSel:
		d.deviceSelect.Store(v)
	case regDriverFeaturesSel:
		d.driverSelect.Store(v)
	case regDriverFeatures:
		d.core.SetDriverFeatures(d.driverSelect.Load(), v)
	case regQueueSel:
		d.queueSelect.Store(v)
	case regSHMSel:
		d.shmSelect.Store(v)
	case regQueueNum:
		d.core.SetRingSize(d.queueSelect.Load(), v)
	case regQueueReady:
		d.setReady(v)
	case regQueueNotify:
		d.core.Notify(v)
	case regInterruptACK:
		d.acknowledge(v)
	case regStatus:
		d.setStatus(v)
	case regQueueDescLow, regQueueDescHigh:
		d.setAddress(virtio.DescArea, reg == regQueueDescHigh, v)
	case regQueueDriverLow, regQueueDriverHigh:
		d.setAddress(virtio.DriverArea, reg == regQueueDriverHigh, v)
	case regQueueDeviceLow, regQueueDeviceHigh:
		d.setAddress(virtio.DeviceArea, reg == regQueueDeviceHigh, v)
	}
}

func (d *Device) setAddress(a virtio.Area, high bool, v uint32) {
	d.core.SetRingAddress(d.queueSelect.Load(), a, high, v)
}

func (d *Device) setReady(v uint32) {
	switch v {
	case 0:
		d.core.DisableRing(d.queueSelect.Load())
	case 1:
		d.core.EnableRing(d.queueSelect.Load())
	}
}

// setStatus ignores values that are no status: the field has 8 bits.
func (d *Device) setStatus(v uint32) {
	if v <= 0xff {
		d.core.SetStatus(virtio.Status(v))
	}
}

// acknowledge takes interrupt causes away (§4.2.2.1: "Writing a value with bits
// set as defined in InterruptStatus to this register notifies the device that
// events causing the interrupt have been handled").
func (d *Device) acknowledge(v uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.pending != 0 && d.pending&^v == 0 {
		d.line.Set(false)
	}
	d.pending &^= v
}

// interrupt adds a cause and drives the line. The line is high while there is
// a cause, so it works edge- and level-triggered: a driver acknowledges before
// it looks into the rings, so an event that finds the line high is seen.
func (d *Device) interrupt(bit uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.pending == 0 {
		d.line.Set(true)
	}
	d.pending |= bit
}

// wiring is the device as its core sees it.
type wiring struct{ *Device }

// OpenBell makes a doorbell. It is rung by QueueNotify's handler: all queues
// share this one address, which a doorbell cannot tell apart.
func (w wiring) OpenBell(int) (virtq.Bell, error) { return w.wires.NewDoorbell() }
func (wiring) CloseBells()                        {}
func (w wiring) QueueInterrupt(int)               { w.interrupt(interruptQueue) }
func (wiring) QueueInterruptFD(int) int           { return -1 } // an interrupt has a status to set
func (w wiring) ConfigInterrupt()                 { w.interrupt(interruptConfig) }

// Cleared resets the transport's own registers (§4.2.2.1: "Upon reset the device
// MUST clear all bits in InterruptStatus and ready bits in the QueueReady
// register for all queues in the device").
func (w wiring) Cleared() {
	for _, r := range []*atomic.Uint32{&w.deviceSelect, &w.driverSelect, &w.queueSelect, &w.shmSelect} {
		r.Store(0)
	}
	w.acknowledge(^uint32(0))
}
