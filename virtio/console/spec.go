package console

// Feature bits (virtio 1.2 §5.3.3).
const (
	VIRTIO_CONSOLE_F_SIZE        = 0
	VIRTIO_CONSOLE_F_MULTIPORT   = 1
	VIRTIO_CONSOLE_F_EMERG_WRITE = 2
)

// Device configuration layout (§5.3.4): le16 cols, le16 rows,
// le32 max_nr_ports, le32 emerg_wr.
const (
	configCols       = 0
	configRows       = 2
	configMaxNrPorts = 4
	configEmergWr    = 8
	configSize       = 12
)

// Virtqueues (§5.3.2). Port 0 has the first pair, the control queues the
// second, port n ≥ 1 the pair at 2n+2.
const (
	queueControlRx = 2
	queueControlTx = 3
)

// rxQueue is the receiveq of a port; its transmitq follows.
func rxQueue(port int) int {
	if port == 0 {
		return 0
	}
	return 2*port + 2
}

// Control messages (§5.3.6.2): le32 id, le16 event, le16 value, then the
// name of PORT_NAME or the struct virtio_console_resize of RESIZE.
const (
	controlSize = 8

	VIRTIO_CONSOLE_DEVICE_READY  = 0
	VIRTIO_CONSOLE_DEVICE_ADD    = 1
	VIRTIO_CONSOLE_DEVICE_REMOVE = 2
	VIRTIO_CONSOLE_PORT_READY    = 3
	VIRTIO_CONSOLE_CONSOLE_PORT  = 4
	VIRTIO_CONSOLE_RESIZE        = 5
	VIRTIO_CONSOLE_PORT_OPEN     = 6
	VIRTIO_CONSOLE_PORT_NAME     = 7
)
