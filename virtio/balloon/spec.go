package balloon

// Feature bits (virtio 1.2 §5.5.3).
const (
	VIRTIO_BALLOON_F_MUST_TELL_HOST = 0
	VIRTIO_BALLOON_F_STATS_VQ       = 1
	VIRTIO_BALLOON_F_DEFLATE_ON_OOM = 2
	VIRTIO_BALLOON_F_FREE_PAGE_HINT = 3
	VIRTIO_BALLOON_F_PAGE_POISON    = 4
	VIRTIO_BALLOON_F_PAGE_REPORTING = 5
)

// Virtqueues (§5.5.2).
const (
	queueInflate   = 0
	queueDeflate   = 1
	queueStats     = 2
	queueFreePage  = 3
	queueReporting = 4
	numQueues      = 5
)

// pageShift is log2 of the unit of page frame numbers (§5.5.6: always 4096 bytes).
const pageShift = 12

// Device configuration layout (§5.5.4): le32 num_pages, le32 actual,
// le32 free_page_hint_cmd_id, le32 poison_val.
const (
	configNumPages = 0
	configActual   = 4
	configCmdID    = 8
	configPoison   = 12
	configSize     = 16
)

// Values of free_page_hint_cmd_id (§5.5.4); from cmdFirst on they name a run.
const (
	VIRTIO_BALLOON_CMD_ID_STOP = 0
	VIRTIO_BALLOON_CMD_ID_DONE = 1
	cmdFirst                   = 2
)

// Tags of struct virtio_balloon_stat: le16 tag, le64 val (§5.5.6.4).
const (
	statSize = 10

	VIRTIO_BALLOON_S_SWAP_IN  = 0
	VIRTIO_BALLOON_S_SWAP_OUT = 1
	VIRTIO_BALLOON_S_MAJFLT   = 2
	VIRTIO_BALLOON_S_MINFLT   = 3
	VIRTIO_BALLOON_S_MEMFREE  = 4
	VIRTIO_BALLOON_S_MEMTOT   = 5
	VIRTIO_BALLOON_S_AVAIL    = 6
	VIRTIO_BALLOON_S_CACHES   = 7
	VIRTIO_BALLOON_S_HTLB_GET = 8
	VIRTIO_BALLOON_S_HTLB_ERR = 9

	numStats = 10
)
