// Package virtio is what all virtio devices share: the [Device] interface
// between a device and its transport, device types, feature bits and status.
// Documents: Virtual I/O Device (VIRTIO) Version 1.2 (and 1.3 where said).
package virtio

import "github.com/gvmspawn/gvmspawn/virtio/virtq"

// Type is a virtio device ID (virtio 1.2 §5).
type Type uint16

// Device IDs.
const (
	TypeNet     Type = 1
	TypeBlock   Type = 2
	TypeConsole Type = 3
	TypeEntropy Type = 4
	TypeBalloon Type = 5
	TypeSCSI    Type = 8
	TypeVsock   Type = 19
	TypeMem     Type = 24
	TypeFS      Type = 26
	TypePmem    Type = 27
)

// Status is the device status field (virtio 1.2 §2.1).
type Status uint8

// Device status bits.
const (
	StatusAcknowledge Status = 1
	StatusDriver      Status = 2
	StatusDriverOK    Status = 4
	StatusFeaturesOK  Status = 8
	StatusNeedsReset  Status = 64
	StatusFailed      Status = 128
)

// Feature bit numbers that are the same for all devices (virtio 1.2 §6).
const (
	FRingIndirectDesc = 28
	FRingEventIdx     = 29
	FVersion1         = 32
	FAccessPlatform   = 33
	FRingPacked       = 34
	FInOrder          = 35
	FOrderPlatform    = 36
	FNotificationData = 38
	FRingReset        = 40
)

// Features is a set of feature bits.
type Features uint64

// Bits returns the set of the given bit numbers.
func Bits(bits ...uint) Features {
	var f Features
	for _, b := range bits {
		f |= 1 << b
	}
	return f
}

// Has reports whether bit number b is in the set.
func (f Features) Has(b uint) bool { return f>>b&1 != 0 }

// Device is a virtio device without its transport. The transport owns status,
// feature negotiation and the ring registers; it serialises all calls, except
// that ReadConfig may run at any time.
type Device interface {
	// Type is the device ID.
	Type() Type
	// Features are the device's own feature bits (0 to 23 and 50 to 127 of
	// virtio 1.2 §2.2, as far as they fit); the transport adds those of the ring.
	Features() Features
	// QueueSizes are the maximum sizes of the virtqueues, powers of two.
	QueueSizes() []uint16
	// ReadConfig copies the device configuration space from off into p; bytes
	// beyond its end read as zero. It must not block.
	ReadConfig(off uint64, p []byte)
	// WriteConfig is a driver's write to it. Read-only fields ignore it.
	WriteConfig(off uint64, p []byte)
	// Activate starts the device: the driver set DRIVER_OK. Features are the
	// negotiated bits. The queues hold the enabled rings; one that the driver
	// left disabled is nil. An error puts the device into NEEDS_RESET.
	Activate(*Activation) error
	// Reset stops it. When Reset returns, nothing of the device touches guest
	// memory or the Activation any more, and Activate may be called again.
	// The transport has closed the queues before, so their workers' Wait
	// returned false. Reset on a device that is not active does nothing.
	Reset()
}

// Activation is what a transport gives a device at DRIVER_OK. It lives until Reset.
type Activation struct {
	Features Features
	Queues   []*virtq.Queue
	// ConfigChanged sends a configuration change notification (§2.3).
	ConfigChanged func()
	// InterruptFD is an eventfd that sends the used buffer notification of a queue
	// without this process, or -1, and Interrupt sends it: both for devices whose
	// queues the host's kernel serves, others use Queue.Notify. An eventfd's
	// notifications do not know of masked vectors.
	InterruptFD func(queue int) int
	Interrupt   func(queue int)
	// NeedsReset sets DEVICE_NEEDS_RESET and notifies the driver (§2.1.2):
	// for a device in an error state that only a reset can leave.
	NeedsReset func()
}

// SharedMemory is a shared memory region of a device (§2.10).
type SharedMemory struct {
	ID   uint8
	Size uint64 // in bytes, a power of two
}

// SharedMemoryDevice is a device with shared memory regions, such as a
// virtio-fs DAX window. The transport exposes them; the machine backs each by
// a mem.Window at the address that the transport chose.
type SharedMemoryDevice interface {
	Device
	SharedMemory() []SharedMemory
}

// InlineDevice is a device that serves quick requests on the thread of the CPU
// that notifies of them ([virtq.Queue.Inline]). Notifications of such a queue come
// as register writes, even where the engine could ring a doorbell without leaving
// the guest: an exit costs less than the change to another thread and back.
type InlineDevice interface {
	Device
	ServesInline(queue int) bool
}
