package vsock

import "encoding/binary"

// Feature bits (virtio 1.2 §5.10.3).
const (
	VIRTIO_VSOCK_F_STREAM    = 0
	VIRTIO_VSOCK_F_SEQPACKET = 1
)

// Virtqueues (§5.10.2).
const (
	queueRx    = 0
	queueTx    = 1
	queueEvent = 2
)

// HostCID is the context ID of the host, for every guest (§5.10.4).
const HostCID = 2

// Socket types (§5.10.6).
const (
	VIRTIO_VSOCK_TYPE_STREAM    = 1
	VIRTIO_VSOCK_TYPE_SEQPACKET = 2
)

// Operations (§5.10.6).
const (
	VIRTIO_VSOCK_OP_REQUEST        = 1
	VIRTIO_VSOCK_OP_RESPONSE       = 2
	VIRTIO_VSOCK_OP_RST            = 3
	VIRTIO_VSOCK_OP_SHUTDOWN       = 4
	VIRTIO_VSOCK_OP_RW             = 5
	VIRTIO_VSOCK_OP_CREDIT_UPDATE  = 6
	VIRTIO_VSOCK_OP_CREDIT_REQUEST = 7
)

// Flags of SHUTDOWN (§5.10.6.5) and, for seqpacket, of RW (§5.10.6.4.1).
const (
	VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE = 1 << 0
	VIRTIO_VSOCK_SHUTDOWN_F_SEND    = 1 << 1
	shutdownBoth                    = VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE | VIRTIO_VSOCK_SHUTDOWN_F_SEND

	VIRTIO_VSOCK_SEQ_EOM = 1 << 0
	VIRTIO_VSOCK_SEQ_EOR = 1 << 1
)

// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET is the one event (§5.10.6.7).
const VIRTIO_VSOCK_EVENT_TRANSPORT_RESET = 0

// headerSize is the length of struct virtio_vsock_hdr in bytes (§5.10.6).
const headerSize = 44

// header is struct virtio_vsock_hdr.
type header struct {
	srcCID, dstCID   uint64
	srcPort, dstPort uint32
	len              uint32
	typ, op          uint16
	flags            uint32
	bufAlloc, fwdCnt uint32
}

func (h *header) parse(b *[headerSize]byte) {
	le := binary.LittleEndian
	h.srcCID, h.dstCID = le.Uint64(b[0:]), le.Uint64(b[8:])
	h.srcPort, h.dstPort = le.Uint32(b[16:]), le.Uint32(b[20:])
	h.len = le.Uint32(b[24:])
	h.typ, h.op = le.Uint16(b[28:]), le.Uint16(b[30:])
	h.flags = le.Uint32(b[32:])
	h.bufAlloc, h.fwdCnt = le.Uint32(b[36:]), le.Uint32(b[40:])
}

func (h *header) put(b *[headerSize]byte) {
	le := binary.LittleEndian
	le.PutUint64(b[0:], h.srcCID)
	le.PutUint64(b[8:], h.dstCID)
	le.PutUint32(b[16:], h.srcPort)
	le.PutUint32(b[20:], h.dstPort)
	le.PutUint32(b[24:], h.len)
	le.PutUint16(b[28:], h.typ)
	le.PutUint16(b[30:], h.op)
	le.PutUint32(b[32:], h.flags)
	le.PutUint32(b[36:], h.bufAlloc)
	le.PutUint32(b[40:], h.fwdCnt)
}
