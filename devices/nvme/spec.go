package nvme

// Controller properties (NVM Express Base 1.4 §3.1).
const (
	regCAP   = 0x00
	regVS    = 0x08
	regINTMS = 0x0c
	regINTMC = 0x10
	regCC    = 0x14
	regCSTS  = 0x1c
	regAQA   = 0x24
	regASQ   = 0x28
	regACQ   = 0x30
)

// CAP (§3.1.1).
const (
	capCQR       = 1 << 16  // queues are physically contiguous
	capTimeout   = 60 << 24 // units of 500 ms until CSTS.RDY follows CC.EN
	capNVM       = 1 << 37  // NVM command set
	capMaxEntry  = maxEntries - 1
	versionOne4  = 0x0001_0400 // VS (§3.1.2)
	cqEntryShift = 4
	sqEntryShift = 6
)

// CC (§3.1.5) and CSTS (§3.1.6).
const (
	ccEnable  = 1 << 0
	ccCSS     = 7 << 4  // command set: 0 is NVM
	ccMPS     = 15 << 7 // page size: 0 is 4 KiB
	ccAMS     = 7 << 11 // arbitration: 0 is round robin
	ccSHN     = 3 << 14 // shutdown notification
	ccIOSQES  = 16
	ccIOCQES  = 20
	cstsReady = 1 << 0
	cstsFatal = 1 << 1
	cstsSHST  = 3 << 2
	// Shutdown status.
	shutdownOccurring = 1 << 2
	shutdownComplete  = 2 << 2
)

// Layout of BAR 0. Doorbells begin where §3.1.16 wants them, 4 bytes each.
const (
	barSize    = 0x4000
	doorbellAt = 0x1000
	tableAt    = 0x2000
	pbaAt      = 0x3000
	partSize   = 0x1000
)

const (
	pageShift = 12
	pageSize  = 1 << pageShift
	// maxEntries is the longest queue.
	maxEntries = 256
	// maxQueues is how many I/O queue pairs a controller can have: what
	// MSI-X table and doorbells have room for, and CPUs can use.
	maxQueues = 64
	// mdts is the largest transfer in pages, as a power of two (§5.15.2.2).
	mdts        = 8
	maxTransfer = pageSize << mdts
)

// Admin command opcodes (§5).
const (
	adminDeleteSQ    = 0x00
	adminCreateSQ    = 0x01
	adminGetLogPage  = 0x02
	adminDeleteCQ    = 0x04
	adminCreateCQ    = 0x05
	adminIdentify    = 0x06
	adminAbort       = 0x08
	adminSetFeatures = 0x09
	adminGetFeatures = 0x0a
	adminAsyncEvent  = 0x0c
	adminDoorbellBuf = 0x7c
)

// NVM command opcodes (§6).
const (
	nvmFlush       = 0x00
	nvmWrite       = 0x01
	nvmRead        = 0x02
	nvmWriteZeroes = 0x08
	nvmDatasetMgmt = 0x09
)

// status is the status field of a completion without its phase tag (§4.6.1):
// code, code type and the bit that says not to retry.
type status uint16

const (
	statusDNR = 1 << 14 // do not retry

	statusOK              status = 0
	statusInvalidOpcode   status = 0x01 | statusDNR
	statusInvalidField    status = 0x02 | statusDNR
	statusTransferError   status = 0x04 | statusDNR
	statusInternal        status = 0x06 | statusDNR
	statusInvalidNS       status = 0x0b | statusDNR
	statusSequence        status = 0x0c | statusDNR
	statusInvalidOffset   status = 0x13 | statusDNR // PRP offset
	statusWriteProtected  status = 0x20 | statusDNR
	statusLBARange        status = 0x80 | statusDNR
	statusBadCQ           status = 0x100 | statusDNR
	statusBadQueueID      status = 0x101 | statusDNR
	statusBadQueueSize    status = 0x102 | statusDNR
	statusTooManyEvents   status = 0x105 | statusDNR
	statusBadVector       status = 0x108 | statusDNR
	statusBadLogPage      status = 0x109 | statusDNR
	statusBadDeletion     status = 0x10c | statusDNR
	statusNotSaveable     status = 0x10d | statusDNR
	statusNotChangeable   status = 0x10e | statusDNR
	statusWriteFault      status = 0x280 | statusDNR
	statusUnrecoveredRead status = 0x281 | statusDNR
)

// noStatus says that a command is not answered yet.
const noStatus status = 0xffff

// Feature identifiers (§5.21.1).
const (
	featArbitration  = 0x01
	featPower        = 0x02
	featTemperature  = 0x04
	featErrors       = 0x05
	featWriteCache   = 0x06
	featQueues       = 0x07
	featCoalescing   = 0x08
	featVector       = 0x09
	featAtomicity    = 0x0a
	featAsyncEvents  = 0x0b
	featSave         = 1 << 31 // of CDW10 in Set Features
	selectCurrent    = 0
	selectSupported  = 3
	changeable       = 1 << 2 // of the capabilities that selectSupported gives
	writeCacheEnable = 1 << 0
)

// Log page identifiers (§5.14.1).
const (
	logErrors   = 0x01
	logHealth   = 0x02
	logFirmware = 0x03
	logEffects  = 0x05
)

// Identify CNS values (§5.15.1).
const (
	cnsNamespace   = 0x00
	cnsController  = 0x01
	cnsActive      = 0x02
	cnsDescriptors = 0x03
)

// Asynchronous events (§5.2.1): type, information and log page.
const (
	eventBadDoorbell = 0<<0 | 0<<8 | logErrors<<16
	eventBadValue    = 0<<0 | 1<<8 | logErrors<<16
	maxAsyncEvents   = 4
)

// PCI identity.
const (
	vendorID  = 0x1af4
	deviceID  = 0x11f0
	pciClass  = 0x010802 // mass storage, non-volatile memory, NVM Express
	namespace = 1        // the only one
	broadcast = 0xffff_ffff
)
