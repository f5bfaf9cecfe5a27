package memdev

// Feature bits (virtio 1.2 §5.15.3).
const (
	VIRTIO_MEM_F_ACPI_PXM               = 0
	VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE = 1
)

// queueGuestRequest is the one virtqueue (§5.15.2).
const queueGuestRequest = 0

// struct virtio_mem_config (§5.15.4): le64 block_size; le16 node_id; u8
// padding[6]; le64 addr, region_size, usable_region_size, plugged_size,
// requested_size.
const (
	configBlockSize     = 0
	configNodeID        = 8
	configAddr          = 16
	configRegionSize    = 24
	configUsableSize    = 32
	configPluggedSize   = 40
	configRequestedSize = 48
	configSize          = 56
)

// Request types (§5.15.6).
const (
	VIRTIO_MEM_REQ_PLUG       = 0
	VIRTIO_MEM_REQ_UNPLUG     = 1
	VIRTIO_MEM_REQ_UNPLUG_ALL = 2
	VIRTIO_MEM_REQ_STATE      = 3
)

// struct virtio_mem_req: le16 type; le16 padding[3]; then for all requests but
// UNPLUG_ALL le64 addr; le16 nb_blocks; le16 padding[3].
const (
	reqType   = 0
	reqAddr   = 8
	reqBlocks = 16
	reqSize   = 24
)

// Response types (§5.15.6) and the states that STATE answers with.
const (
	VIRTIO_MEM_RESP_ACK   = 0
	VIRTIO_MEM_RESP_NACK  = 1
	VIRTIO_MEM_RESP_BUSY  = 2
	VIRTIO_MEM_RESP_ERROR = 3

	VIRTIO_MEM_STATE_PLUGGED   = 0
	VIRTIO_MEM_STATE_UNPLUGGED = 1
	VIRTIO_MEM_STATE_MIXED     = 2
)

// struct virtio_mem_resp: le16 type; le16 padding[3]; le16 state.
const (
	respType  = 0
	respState = 8
	respSize  = 10
)
