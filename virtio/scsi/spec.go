package scsi

// Queues (virtio 1.2 §5.6.2): control, events, then requests.
const (
	controlQueue  = 0
	eventQueue    = 1
	firstRequests = 2
)

// Device configuration layout (§5.6.4).
const (
	configNumQueues  = 0
	configSegMax     = 4
	configMaxSectors = 8
	configCmdPerLUN  = 12
	configEventSize  = 16
	configSenseSize  = 20
	configCDBSize    = 24
	configMaxTarget  = 30
	configMaxLUN     = 32
	configSize       = 36

	// Initial values of what the driver may write.
	defaultSenseSize = 96
	defaultCDBSize   = 32
	// eventSize is struct virtio_scsi_event.
	eventSize = 16
)

// struct virtio_scsi_req_cmd (§5.6.6.1): lun[8], id, task_attr, prio, crn, and
// then the CDB and data-out. The answer: sense_len, residual,
// status_qualifier, status, response, and then sense and data-in.
const (
	requestHeader  = 19
	responseHeader = 12
	// maxCDB is as much of a CDB as any command here has.
	maxCDB = 16
)

// response is the response field (§5.6.6.1, §5.6.6.2).
type response uint8

const (
	VIRTIO_SCSI_S_OK                 response = 0
	VIRTIO_SCSI_S_OVERRUN            response = 1
	VIRTIO_SCSI_S_BAD_TARGET         response = 3
	VIRTIO_SCSI_S_FAILURE            response = 9
	VIRTIO_SCSI_S_FUNCTION_SUCCEEDED response = 10
	VIRTIO_SCSI_S_FUNCTION_REJECTED  response = 11
	VIRTIO_SCSI_S_INCORRECT_LUN      response = 12
	VIRTIO_SCSI_S_FUNCTION_COMPLETE  response = 0
)

// Control requests (§5.6.6.2) and their lengths.
const (
	VIRTIO_SCSI_T_TMF          = 0
	VIRTIO_SCSI_T_AN_QUERY     = 1
	VIRTIO_SCSI_T_AN_SUBSCRIBE = 2

	tmfSize          = 24 // type, subtype, lun[8], id
	tmfAnswer        = 1
	subscribeSize    = 16 // type, lun[8], event_requested
	subscribeAnswer  = 5  // event_actual, response
	tmfAbortTask     = 0
	tmfAbortTaskSet  = 1
	tmfClearACA      = 2
	tmfClearTaskSet  = 3
	tmfNexusReset    = 4
	tmfUnitReset     = 5
	tmfQueryTask     = 6
	tmfQueryTaskSet  = 7
	controlTypeField = 0
)

// SCSI status (SAM-5 §5.3.1).
const (
	statusGood           = 0
	statusCheckCondition = 2
)

// Operation codes (SPC-4, SBC-3, MMC-6).
const (
	opTestUnitReady   = 0x00
	opRequestSense    = 0x03
	opRead6           = 0x08
	opWrite6          = 0x0a
	opInquiry         = 0x12
	opModeSelect6     = 0x15
	opModeSense6      = 0x1a
	opStartStop       = 0x1b
	opPreventAllow    = 0x1e
	opReadCapacity10  = 0x25
	opRead10          = 0x28
	opWrite10         = 0x2a
	opVerify10        = 0x2f
	opSyncCache10     = 0x35
	opWriteSame10     = 0x41
	opUnmap           = 0x42
	opReadTOC         = 0x43
	opGetConfig       = 0x46
	opGetEvent        = 0x4a
	opReadDiscInfo    = 0x51
	opModeSelect10    = 0x55
	opModeSense10     = 0x5a
	opRead16          = 0x88
	opWrite16         = 0x8a
	opVerify16        = 0x8f
	opSyncCache16     = 0x91
	opWriteSame16     = 0x93
	opServiceActionIn = 0x9e
	opReportLUNs      = 0xa0
	opRead12          = 0xa8
	opWrite12         = 0xaa
	saReadCapacity16  = 0x10
)

// Peripheral device types (SPC-4 §6.6.2).
const (
	typeDisk = 0x00
	typeCD   = 0x05
)

// sense is a sense key with an additional sense code and qualifier (SPC-4 §4.5).
type sense struct{ key, asc, ascq uint8 }

var (
	senseNone            = sense{}
	senseReadError       = sense{3, 0x11, 0x00} // medium error, unrecovered read error
	senseWriteError      = sense{3, 0x0c, 0x00} // medium error, write error
	senseListLength      = sense{5, 0x1a, 0x00} // parameter list length error
	senseOpcode          = sense{5, 0x20, 0x00} // invalid command operation code
	senseLBARange        = sense{5, 0x21, 0x00} // logical block address out of range
	senseField           = sense{5, 0x24, 0x00} // invalid field in CDB
	senseNoUnit          = sense{5, 0x25, 0x00} // logical unit not supported
	senseList            = sense{5, 0x26, 0x00} // invalid field in parameter list
	senseNoSaving        = sense{5, 0x39, 0x00} // saving parameters not supported
	senseRemoval         = sense{5, 0x53, 0x02} // medium removal prevented
	sensePowerOn         = sense{6, 0x29, 0x00} // power on, reset, or bus device reset occurred
	senseWriteProtected  = sense{7, 0x27, 0x00} // data protect, write protected
	senseSpaceAllocation = sense{7, 0x27, 0x07} // space allocation failed write protect
)

// senseSize is fixed format sense data (SPC-4 §4.5.3).
const senseSize = 18

// bytes is the sense data in fixed format.
func (s sense) bytes() (b [senseSize]byte) {
	b[0], b[2], b[7], b[12], b[13] = 0x70, s.key, senseSize-8, s.asc, s.ascq
	return b
}
