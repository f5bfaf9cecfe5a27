package virtiopci

import (
	"encoding/binary"
	"sync/atomic"

	"github.com/gvmspawn/gvmspawn/devices/pci"
	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// commonSize is the length of struct virtio_pci_common_cfg in bytes.
const commonSize = 60

// field is a register of the common configuration. A 64-bit field is two.
type field struct {
	off, size uint64
	read      func(*Function) uint64
	write     func(*Function, uint32) // nil: read-only
}

// common is struct virtio_pci_common_cfg (§4.1.4.3) by rising offset.
var common = [...]field{
	{0, 4, func(f *Function) uint64 { return uint64(f.deviceSelect.Load()) }, func(f *Function, v uint32) { f.deviceSelect.Store(v) }},
	{4, 4, func(f *Function) uint64 { return uint64(f.core.DeviceFeatures(f.deviceSelect.Load())) }, nil},
	{8, 4, func(f *Function) uint64 { return uint64(f.driverSelect.Load()) }, func(f *Function, v uint32) { f.driverSelect.Store(v) }},
	{12, 4, func(f *Function) uint64 { return uint64(f.core.DriverFeatures(f.driverSelect.Load())) },
		func(f *Function, v uint32) { f.core.SetDriverFeatures(f.driverSelect.Load(), v) }},
	{16, 2, func(f *Function) uint64 { return uint64(f.configVector.Load()) }, func(f *Function, v uint32) { f.setVector(&f.configVector, v) }},
	{18, 2, func(f *Function) uint64 { return uint64(f.core.Rings()) }, nil},
	{20, 1, func(f *Function) uint64 { return uint64(f.core.Status()) }, func(f *Function, v uint32) { f.core.SetStatus(virtio.Status(v)) }},
	{21, 1, func(f *Function) uint64 { return uint64(uint8(f.core.Generation())) }, nil},
	{22, 2, func(f *Function) uint64 { return uint64(f.queueSelect.Load()) }, func(f *Function, v uint32) { f.queueSelect.Store(v) }},
	{24, 2, func(f *Function) uint64 { return uint64(f.ring().Size) }, func(f *Function, v uint32) { f.core.SetRingSize(f.queueSelect.Load(), v) }},
	{26, 2, (*Function).readQueueVector, (*Function).writeQueueVector},
	{28, 2, (*Function).readEnable, (*Function).writeEnable},
	{30, 2, (*Function).readNotifyOff, nil},
	{32, 4, func(f *Function) uint64 { return uint64(uint32(f.ring().Desc)) }, setAddress(virtio.DescArea, false)},
	{36, 4, func(f *Function) uint64 { return uint64(f.ring().Desc >> 32) }, setAddress(virtio.DescArea, true)},
	{40, 4, func(f *Function) uint64 { return uint64(uint32(f.ring().Avail)) }, setAddress(virtio.DriverArea, false)},
	{44, 4, func(f *Function) uint64 { return uint64(f.ring().Avail >> 32) }, setAddress(virtio.DriverArea, true)},
	{48, 4, func(f *Function) uint64 { return uint64(uint32(f.ring().Used)) }, setAddress(virtio.DeviceArea, false)},
	{52, 4, func(f *Function) uint64 { return uint64(f.ring().Used >> 32) }, setAddress(virtio.DeviceArea, true)},
	{56, 2, func(*Function) uint64 { return 0 }, nil}, // queue_notify_data: NOTIF_CONFIG_DATA is not offered
	{58, 2, func(*Function) uint64 { return 0 }, nil}, // queue_reset: RING_RESET is not offered
}

// ring is the selected queue; one that does not exist has size 0 (§4.1.4.3.1:
// "The device MUST present a 0 in queue_size if the virtqueue corresponding to
// the current queue_select is unavailable").
func (f *Function) ring() virtio.Ring {
	r, _ := f.core.Ring(f.queueSelect.Load())
	return r
}

func setAddress(a virtio.Area, high bool) func(*Function, uint32) {
	return func(f *Function, v uint32) { f.core.SetRingAddress(f.queueSelect.Load(), a, high, v) }
}

// setVector maps an event to a vector (§4.1.5.1.2.1: "Devices MUST return the
// vector mapped to a given event, (NO_VECTOR if unmapped) on read").
func (f *Function) setVector(to *atomic.Uint32, v uint32) {
	if v >= uint32(f.msix.Vectors()) {
		v = noVector
	}
	to.Store(v)
}

func (f *Function) readQueueVector() uint64 {
	if i := f.queueSelect.Load(); i < uint32(len(f.queueVector)) {
		return uint64(f.queueVector[i].Load())
	}
	return noVector
}

func (f *Function) writeQueueVector(v uint32) {
	if i := f.queueSelect.Load(); i < uint32(len(f.queueVector)) {
		f.setVector(&f.queueVector[i], v)
	}
}

func (f *Function) readEnable() uint64 {
	if f.ring().Enabled {
		return 1
	}
	return 0
}

// writeEnable enables the queue (§4.1.4.3.2: "The driver MUST NOT write a 0 to
// queue_enable").
func (f *Function) writeEnable(v uint32) {
	if v == 1 {
		f.core.EnableRing(f.queueSelect.Load())
	}
}

func (f *Function) readNotifyOff() uint64 {
	if i := f.queueSelect.Load(); i < uint32(f.core.Rings()) {
		return uint64(i)
	}
	return 0
}

// readCommon reads any bytes of the common configuration. §4.1.3.1 asks drivers
// for accesses of the field's size; others get the bytes that are there.
func (f *Function) readCommon(off, size uint64) uint64 {
	v := uint64(0)
	for i := range common {
		r := &common[i]
		if r.off >= off+size || off >= r.off+r.size {
			continue
		}
		if b := r.read(f); r.off >= off {
			v |= b << (8 * (r.off - off))
		} else {
			v |= b >> (8 * (off - r.off))
		}
	}
	return v
}

// writeCommon writes the fields that the access covers wholly; parts of fields
// are ignored, for half a register would make a value nobody meant.
func (f *Function) writeCommon(off, size, v uint64) {
	for i := range common {
		r := &common[i]
		if r.off >= off && r.off+r.size <= off+size && r.write != nil {
			w := uint32(v >> (8 * (r.off - off)))
			r.write(f, w&(1<<(8*r.size)-1))
		}
	}
}

// registers is the device in BAR 0.
type registers struct{ *Function }

// Read reads BAR 0. An access across two parts goes to the first.
func (r registers) Read(off uint64, size int) uint64 {
	at := off % partSize
	switch off - at {
	case commonAt:
		return r.readCommon(at, uint64(size))
	case isrAt:
		// §4.1.4.5.1: "The device MUST reset ISR status to 0 on driver read."
		if at == 0 {
			return uint64(r.isr.Swap(0))
		}
	case deviceAt:
		return r.core.ReadConfig(at, size)
	case tableAt:
		return r.msix.Table().Read(at, size)
	case pbaAt:
		return r.msix.PBA().Read(at, size)
	}
	return 0
}

// Write writes BAR 0. The value of a notification does not matter: the address
// names the queue (§4.1.4.4).
func (r registers) Write(off uint64, size int, v uint64) {
	at := off % partSize
	switch off - at {
	case commonAt:
		r.writeCommon(at, uint64(size), v)
	case deviceAt:
		r.core.WriteConfig(at, size, v)
	case notifyAt:
		r.core.Notify(uint32(at / notifyStride))
	case tableAt:
		r.msix.Table().Write(at, size, v)
	}
}

// notifyPort is BAR 1: the value names the queue (§4.1.5.2).
type notifyPort struct{ *Function }

// Read reads nothing: the port is for writing.
func (notifyPort) Read(_ uint64, size int) uint64 { return bus.Ones(size) }

// Write notifies.
func (p notifyPort) Write(off uint64, _ int, v uint64) {
	if off == 0 {
		p.core.Notify(uint32(uint16(v)))
	}
}

// Fields of struct virtio_pci_cfg_cap (§4.1.4.9) in a capability's body.
const (
	windowBAR    = 2
	windowOffset = 6
	windowLength = 10
	windowData   = 14
)

// windowCap is the capability through which software without access to memory
// reads and writes BAR 0 and the notification port (§4.1.4.9).
func (f *Function) windowCap() pci.Capability {
	body := append(vendorCap(capPCI, 0, 0, 0), 0, 0, 0, 0)
	body[0] = byte(2 + len(body))
	writable := make([]byte, len(body))
	for i := range writable {
		if i == windowBAR || i >= windowOffset {
			writable[i] = 0xff
		}
	}
	return pci.Capability{
		ID: pci.CapVendor, Body: body, Writable: writable,
		Reading: func(b []byte, off, n int) {
			if d, at, size := f.window(b, off, n); d != nil {
				binary.LittleEndian.PutUint32(b[windowData:], uint32(d.Read(at, size)))
			}
		},
		Written: func(b []byte, off, n int) {
			if d, at, size := f.window(b, off, n); d != nil {
				v := uint64(binary.LittleEndian.Uint32(b[windowData:]))
				d.Write(at, size, v&(1<<(8*size)-1))
			}
		},
	}
}

// window decodes the capability if the access touches pci_cfg_data, to what the
// BAR has there. §4.1.4.9.1: bar must name one with a virtio structure, "length MUST be
// 1, 2, or 4", "offset MUST be a multiple of length"; for anything else there is no device.
func (f *Function) window(b []byte, off, n int) (d bus.Device, at uint64, size int) {
	limit := uint64(barSize)
	switch {
	case off+n <= windowData:
		return nil, 0, 0
	case b[windowBAR] == 0:
		d = registers{f}
	case b[windowBAR] == portBAR && f.port:
		d, limit = notifyPort{f}, portSize
	}
	at = uint64(binary.LittleEndian.Uint32(b[windowOffset:]))
	l := uint64(binary.LittleEndian.Uint32(b[windowLength:]))
	if l != 1 && l != 2 && l != 4 || at%l != 0 || at+l > limit {
		return nil, 0, 0
	}
	return d, at, int(l)
}
