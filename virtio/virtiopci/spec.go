package virtiopci

import "github.com/gvmspawn/gvmspawn/virtio"

// PCI identity (virtio 1.2 §4.1.2).
const (
	vendorID   = 0x1af4
	deviceBase = 0x1040 // plus the virtio device ID
	revision   = 1      // §4.1.2.1: "Devices SHOULD have a PCI Revision ID of 1 or higher"
)

// classes gives the PCI class code of the types that have a fitting one.
var classes = map[virtio.Type]uint32{
	virtio.TypeNet:     0x020000, // network, Ethernet
	virtio.TypeBlock:   0x010000, // storage
	virtio.TypeConsole: 0x078000, // communication, other
	virtio.TypeSCSI:    0x010000,
	virtio.TypeVsock:   0x028000, // network, other
	virtio.TypeMem:     0x050000, // memory
	virtio.TypeFS:      0x018000, // storage, other
	virtio.TypePmem:    0x050000,
}

// classOther is a device that does not fit in any defined class.
const classOther = 0x00ff00

// Capability types (§4.1.4).
const (
	capCommon       = 1 // VIRTIO_PCI_CAP_COMMON_CFG
	capNotify       = 2 // VIRTIO_PCI_CAP_NOTIFY_CFG
	capISR          = 3 // VIRTIO_PCI_CAP_ISR_CFG
	capDevice       = 4 // VIRTIO_PCI_CAP_DEVICE_CFG
	capPCI          = 5 // VIRTIO_PCI_CAP_PCI_CFG
	capSharedMemory = 8 // VIRTIO_PCI_CAP_SHARED_MEMORY_CFG
)

// Layout of BAR 0. Each part has a page.
const (
	barSize      = 0x8000
	partSize     = 0x1000
	commonAt     = 0x0000
	isrAt        = 0x1000
	deviceAt     = 0x2000
	notifyAt     = 0x3000
	tableAt      = 0x4000
	pbaAt        = 0x5000
	notifyStride = 4 // notify_off_multiplier (§4.1.4.4)
	maxQueues    = partSize / notifyStride

	// BAR 1 is the notification port, if there is one.
	portBAR    = 1
	portSize   = 4
	maxVectors = partSize / 16
)

// noVector is VIRTIO_MSI_NO_VECTOR (§4.1.5.1.2).
const noVector = 0xffff

// ISR status bits (§4.1.4.5).
const (
	isrQueue  = 1 << 0
	isrConfig = 1 << 1
)
