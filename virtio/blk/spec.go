package blk

// Feature bits (virtio 1.2 §5.2.3).
const (
	VIRTIO_BLK_F_SEG_MAX      = 2
	VIRTIO_BLK_F_RO           = 5
	VIRTIO_BLK_F_BLK_SIZE     = 6
	VIRTIO_BLK_F_FLUSH        = 9
	VIRTIO_BLK_F_TOPOLOGY     = 10
	VIRTIO_BLK_F_CONFIG_WCE   = 11
	VIRTIO_BLK_F_MQ           = 12
	VIRTIO_BLK_F_DISCARD      = 13
	VIRTIO_BLK_F_WRITE_ZEROES = 14
)

// Request types (§5.2.6).
const (
	VIRTIO_BLK_T_IN           = 0
	VIRTIO_BLK_T_OUT          = 1
	VIRTIO_BLK_T_FLUSH        = 4
	VIRTIO_BLK_T_GET_ID       = 8
	VIRTIO_BLK_T_DISCARD      = 11
	VIRTIO_BLK_T_WRITE_ZEROES = 13
)

// Status bytes (§5.2.6).
const (
	VIRTIO_BLK_S_OK     = 0
	VIRTIO_BLK_S_IOERR  = 1
	VIRTIO_BLK_S_UNSUPP = 2
)

const (
	sectorShift = 9
	// sectorSize is the unit of capacity and request addresses in bytes (§5.2.4).
	sectorSize = 1 << sectorShift

	// headerSize is le32 type, le32 reserved, le64 sector (§5.2.6).
	headerSize = 16
	// idSize is the length of the GET_ID string (§5.2.6).
	idSize = 20
	// rangeSize is struct virtio_blk_discard_write_zeroes: le64 sector,
	// le32 num_sectors, le32 flags (§5.2.6).
	rangeSize = 16
	// rangeUnmap is its unmap flag.
	rangeUnmap = 1 << 0
)

// Device configuration layout (§5.2.4).
const (
	configCapacity              = 0
	configSegMax                = 12
	configBlkSize               = 20
	configPhysicalBlockExp      = 24
	configMinIOSize             = 26
	configOptIOSize             = 28
	configWriteback             = 32
	configNumQueues             = 34
	configMaxDiscardSectors     = 36
	configMaxDiscardSeg         = 40
	configDiscardAlignment      = 44
	configMaxWriteZeroesSectors = 48
	configMaxWriteZeroesSeg     = 52
	configWriteZeroesMayUnmap   = 56
	configSize                  = 60
)
