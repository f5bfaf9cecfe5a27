// Package virtiopci makes a virtio device a PCI function: virtio over PCI bus,
// modern devices only. Document: virtio 1.2 §4.1.
//
// BAR 0 has the registers, the notification addresses and MSI-X. Each shared
// memory region of the device has a 64-bit BAR of its own, BARs 2 and 4, whose
// address is fixed when the function is added to its bus: the machine puts
// memory there, and memory slots do not move. A guest may write another
// address into such a BAR; the memory stays where it was.
//
// Where every notification leaves the guest anyway (virtio.InlineDevice), it had
// better be an OUT, to BAR 1: KVM has to fetch and decode a MOV to memory first,
// through the guest's page tables. For the software CPU the two are alike.
//
// Interrupts are message-signalled (MSI-X), one vector for configuration
// changes and one for each queue. There is no interrupt pin.
package virtiopci

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/gvmspawn/gvmspawn/devices/pci"
	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/virtq"
	"github.com/gvmspawn/gvmspawn/vmm/bus"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// Options of a function; the zero value is good.
type Options struct {
	// Features are ring features to offer beside those that are always there.
	Features virtio.Features
	// SharedMemory gives the guest physical address of shared memory regions
	// by their ID, for a machine that put memory there before: a multiple of
	// the region's size in the 64-bit window. Others get one from the host.
	SharedMemory map[uint8]mem.GPA
	// Log is told why the device stopped, at most once a second.
	Log func(error)
}

// Function is a virtio device on PCI. Add its pci.Function to a bus.
type Function struct {
	*pci.Function
	core  *virtio.Core
	dev   virtio.Device
	wires bus.Wires
	msix  *pci.MSIX
	log   func(error)
	port  bool // there is a notification port

	// Registers of this transport. They are separate atomics: a guest that
	// writes them from two CPUs at once gets what it deserves, safely.
	isr           atomic.Uint32
	deviceSelect  atomic.Uint32
	driverSelect  atomic.Uint32
	queueSelect   atomic.Uint32
	configVector  atomic.Uint32
	queueVector   []atomic.Uint32
	sharedRegions []shared

	bellMu   sync.Mutex // guards the rest; nothing is locked under it
	bells    []bus.Doorbell
	base     uint64 // of BAR 0
	decoding bool
}

// shared is a shared memory region and its BAR.
type shared struct {
	virtio.SharedMemory
	bar int
}

// New returns a function for the device. Its queues lie in m; wires makes its
// interrupts and doorbells.
func New(name string, dev virtio.Device, m *mem.Memory, wires bus.Wires, o Options) (*Function, error) {
	n := len(dev.QueueSizes())
	if n > maxQueues {
		return nil, fmt.Errorf("virtio-pci %s: %d queues, of which %d have notification addresses", name, n, maxQueues)
	}
	class, ok := classes[dev.Type()]
	if !ok {
		class = classOther
	}
	id := deviceBase + uint16(dev.Type())
	f := &Function{
		Function: pci.NewFunction(name, pci.ID{
			Vendor: vendorID, Device: id, SubVendor: vendorID, Subsystem: id, Revision: revision, Class: class,
		}),
		dev: dev, wires: wires, log: o.Log,
		queueVector: make([]atomic.Uint32, n), bells: make([]bus.Doorbell, n),
	}
	f.core = virtio.NewCore(dev, m, wiring{f}, o.Features, o.Log)
	f.OnReset, f.Description = f.core.Reset, f.Describe
	wiring{f}.Cleared()
	if err := f.AddBAR(0, pci.BAR{Size: barSize, Device: registers{f}, Moved: f.moved}); err != nil {
		return nil, err
	}
	if err := f.addSharedMemory(dev, o.SharedMemory); err != nil {
		return nil, err
	}
	f.port = servesInline(dev, n)
	if f.port {
		if err := f.AddBAR(portBAR, pci.BAR{Size: portSize, Ports: true, Device: notifyPort{f}}); err != nil {
			return nil, err
		}
	}
	if err := f.addCapabilities(n); err != nil {
		return nil, err
	}
	return f, nil
}

// servesInline reports whether the device serves all of its n queues inline.
func servesInline(dev virtio.Device, n int) bool {
	d, ok := dev.(virtio.InlineDevice)
	for i := range n {
		ok = ok && d.ServesInline(i)
	}
	return ok
}

// addSharedMemory gives each shared memory region a BAR.
func (f *Function) addSharedMemory(dev virtio.Device, at map[uint8]mem.GPA) error {
	s, ok := dev.(virtio.SharedMemoryDevice)
	if !ok {
		return nil
	}
	for i, r := range s.SharedMemory() {
		n := 2 + 2*i
		if err := f.AddBAR(n, pci.BAR{Size: r.Size, Wide: true, Prefetchable: true, Address: uint64(at[r.ID])}); err != nil {
			return fmt.Errorf("shared memory region %d: %w", r.ID, err)
		}
		f.sharedRegions = append(f.sharedRegions, shared{r, n})
	}
	return nil
}

// SharedMemory is the guest physical address and the size of the shared memory
// region with the given ID. It is known once the function is on a bus.
func (f *Function) SharedMemory(id uint8) (base mem.GPA, size uint64, ok bool) {
	for _, r := range f.sharedRegions {
		if r.ID == id {
			return mem.GPA(f.BARAddress(r.bar)), r.Size, true
		}
	}
	return 0, 0, false
}

// Core is the device's transport-independent half.
func (f *Function) Core() *virtio.Core { return f.core }

// Close resets the device for good and frees its interrupts.
func (f *Function) Close() {
	f.core.Close()
	f.msix.Close()
}

// addCapabilities fills the capability list (§4.1.4).
func (f *Function) addCapabilities(queues int) error {
	var err error
	f.msix, err = f.NewMSIX(min(queues+1, maxVectors), 0, tableAt, pbaAt, f.wires)
	if err != nil {
		return err
	}
	caps := [][]byte{
		vendorCap(capCommon, 0, commonAt, commonSize),
		notifyCap(0, notifyAt, uint32(max(queues, 1)*notifyStride), notifyStride),
		vendorCap(capISR, 0, isrAt, 4),
		vendorCap(capDevice, 0, deviceAt, partSize),
	}
	if f.port {
		// §4.1.4: of several structures of a type, the device lists the one that it prefers
		// first. The multiplier 0 makes the port every queue's address (§4.1.4.4).
		caps = slices.Insert(caps, 1, notifyCap(portBAR, 0, portSize, 0))
	}
	for _, r := range f.sharedRegions {
		// struct virtio_pci_cap64 (§4.1.4.7)
		c := vendorCap(capSharedMemory, r.bar, 0, uint32(r.Size))
		c[3] = r.ID
		c = binary.LittleEndian.AppendUint32(c, 0)
		caps = append(caps, binary.LittleEndian.AppendUint32(c, uint32(r.Size>>32)))
	}
	for _, body := range caps {
		body[0] = byte(2 + len(body))
		if _, err = f.AddCapability(pci.Capability{ID: pci.CapVendor, Body: body}); err != nil {
			f.msix.Close()
			return err
		}
	}
	if _, err = f.AddCapability(f.windowCap()); err != nil {
		f.msix.Close()
	}
	return err
}

// vendorCap is struct virtio_pci_cap without its first two bytes (§4.1.4):
// cap_len, cfg_type, bar, id, padding[2], offset, length.
func vendorCap(kind byte, bar int, offset, length uint32) []byte {
	b := []byte{16, kind, byte(bar), 0, 0, 0}
	b = binary.LittleEndian.AppendUint32(b, offset)
	return binary.LittleEndian.AppendUint32(b, length)
}

// notifyCap is struct virtio_pci_notify_cap (§4.1.4.4) without its first two bytes.
func notifyCap(bar int, offset, length, multiplier uint32) []byte {
	return binary.LittleEndian.AppendUint32(vendorCap(capNotify, bar, offset, length), multiplier)
}

// wiring is the function as its core sees it.
type wiring struct{ *Function }

// OpenBell makes a doorbell and binds it to the queue's notification address, unless
// the device wants these register writes itself.
func (w wiring) OpenBell(i int) (virtq.Bell, error) {
	d, err := w.wires.NewDoorbell()
	if err != nil {
		return nil, fmt.Errorf("doorbell: %w", err)
	}
	if dev, ok := w.dev.(virtio.InlineDevice); ok && dev.ServesInline(i) {
		return d, nil
	}
	w.bellMu.Lock()
	defer w.bellMu.Unlock()
	w.bells[i] = d
	if w.decoding {
		w.bind(i)
	}
	return d, nil
}

// bind binds bell i. Without a binding, notifications come as register writes,
// which work as well, only slower; so an error is merely logged.
//
// Preconditions: w.bellMu is held.
func (f *Function) bind(i int) {
	if err := f.bells[i].Bind(f.base + notifyAt + uint64(i)*notifyStride); err != nil && f.log != nil {
		f.log(fmt.Errorf("virtio-pci %s: bind doorbell %d: %w", f.Name(), i, err))
	}
}

// CloseBells unbinds all bells.
func (w wiring) CloseBells() {
	w.bellMu.Lock()
	defer w.bellMu.Unlock()
	for i, d := range w.bells {
		if d != nil {
			_ = d.Unbind()
			w.bells[i] = nil
		}
	}
}

// moved follows BAR 0 with the bells.
func (f *Function) moved(addr uint64, on bool) {
	f.bellMu.Lock()
	defer f.bellMu.Unlock()
	f.base, f.decoding = addr, on
	for i, d := range f.bells {
		switch {
		case d == nil:
		case on:
			f.bind(i)
		default:
			_ = d.Unbind()
		}
	}
}

// QueueInterrupt sends queue i's vector.
func (w wiring) QueueInterrupt(i int) { w.interrupt(&w.queueVector[i], isrQueue) }

// QueueInterruptFD is the eventfd of queue i's vector; without MSI-X there is none.
func (w wiring) QueueInterruptFD(i int) int {
	if !w.msix.Enabled() {
		return -1
	}
	return w.msix.FD(int(w.queueVector[i].Load())) // noVector is none of the table's
}

// ConfigInterrupt sends the configuration vector.
func (w wiring) ConfigInterrupt() { w.interrupt(&w.configVector, isrConfig) }

// interrupt sends a vector, or without MSI-X leaves a bit for a driver that
// polls the ISR status (§4.1.5.3, §4.1.5.4).
func (f *Function) interrupt(vector *atomic.Uint32, bit uint32) {
	if f.msix.Enabled() {
		f.msix.Trigger(uint16(vector.Load())) // noVector is none of the table's
	} else {
		f.isr.Or(bit)
	}
}

// Cleared brings the transport's registers into their initial state (§4.1.5.1.2.1:
// "Upon reset, all vectors are unmapped").
func (w wiring) Cleared() {
	w.isr.Store(0)
	w.deviceSelect.Store(0)
	w.driverSelect.Store(0)
	w.queueSelect.Store(0)
	w.configVector.Store(noVector)
	for i := range w.queueVector {
		w.queueVector[i].Store(noVector)
	}
}
