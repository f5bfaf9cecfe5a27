package pmem

// queueRequest is the one virtqueue (virtio 1.2 §5.19.2).
const queueRequest = 0

// struct virtio_pmem_config (§5.19.4): le64 start, le64 size.
const (
	configStart = 0
	configLen   = 8
	configSize  = 16
)

// VIRTIO_PMEM_REQ_TYPE_FLUSH is the one request: struct virtio_pmem_req is le32
// type, struct virtio_pmem_resp is le32 ret, 0 for success (§5.19.6).
const (
	VIRTIO_PMEM_REQ_TYPE_FLUSH = 0

	reqSize  = 4
	respSize = 4

	retSuccess = 0
	retFailure = 1
)
