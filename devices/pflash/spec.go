package pflash

// command is a write's meaning (Intel AP-646, table 2).
type command uint8

const (
	cmdLockSet          command = 0x01
	cmdProgram          command = 0x10
	cmdErase            command = 0x20
	cmdProgramAlternate command = 0x40
	cmdClearStatus      command = 0x50
	cmdLock             command = 0x60
	cmdReadStatus       command = 0x70
	cmdReadID           command = 0x90
	cmdReadCFI          command = 0x98
	cmdConfirm          command = 0xd0
	cmdBuffer           command = 0xe8
	// cmdReadArray is 0xff to the guest, too; as a mode it is the zero value.
	cmdReadArray command = 0x00
)

// status is the status register (AP-646, table 4).
type status uint8

const (
	statusReady        status = 1 << 7
	statusEraseError   status = 1 << 5
	statusProgramError status = 1 << 4
)

// Identification as QEMU's chip has it: an Intel part.
const (
	manufacturer = 0x89
	deviceID     = 0x18
)

// readID answers READ ID: manufacturer, device, and that no block is locked.
func readID(off int) byte {
	switch off & 0xff {
	case 0:
		return manufacturer
	case 1:
		return deviceID
	}
	return 0
}

// cfi answers the query (JESD68.01, tables 1 to 5), one byte an address, for a
// chip of size bytes.
func cfi(off, size int) byte {
	blocks := size/BlockSize - 1
	switch off & 0xff {
	case 0x10:
		return 'Q'
	case 0x11:
		return 'R'
	case 0x12:
		return 'Y'
	case 0x13:
		return 0x01 // primary command set: Intel extended
	case 0x15:
		return 0x31 // where its table is
	case 0x1b:
		return 0x45 // Vcc 4.5 V to
	case 0x1c:
		return 0x55 // 5.5 V
	case 0x1f, 0x20, 0x21:
		return 1 // typical times: 2 µs, 2 µs, 2 ms
	case 0x23, 0x24, 0x25:
		return 1 // at most twice as long
	case 0x27:
		return log2(size)
	case 0x2a:
		return log2(bufferSize)
	case 0x2c:
		return 1 // one region of equal blocks
	case 0x2d:
		return byte(blocks)
	case 0x2e:
		return byte(blocks >> 8)
	case 0x2f:
		return byte(BlockSize >> 8 & 0xff)
	case 0x30:
		return byte(BlockSize >> 16)
	case 0x31:
		return 'P'
	case 0x32:
		return 'R'
	case 0x33:
		return 'I'
	case 0x34:
		return '1' // version 1.0
	case 0x35:
		return '0'
	}
	return 0
}

// log2 is the exponent of the smallest power of two that is not below n.
func log2(n int) byte {
	e := byte(0)
	for 1<<e < n {
		e++
	}
	return e
}
