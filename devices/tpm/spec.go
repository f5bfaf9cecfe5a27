package tpm

// Size is the size of either front-end's registers in bytes: five localities
// of a page each (PTP, "TPM Register Space").
const (
	Size = localityCount << localityShift

	localityCount = 5
	localityShift = 12
	localityMask  = 1<<localityShift - 1

	// hardwareLocality is for the D-RTM's hardware alone: software's writes
	// are not heard.
	hardwareLocality = 4
)

// FIFO registers of a locality's page, with the names of the PTP (FIFO
// Interface, "TPM FIFO Register Overview").
const (
	regAccess       = 0x000
	regIntEnable    = 0x008
	regIntVector    = 0x00c
	regIntStatus    = 0x010
	regIntfCap      = 0x014
	regSTS          = 0x018
	regDataFIFO     = 0x024
	regInterfaceID  = 0x030
	regXDataFIFO    = 0x080
	regXDataFIFOEnd = 0x0c0
	regDIDVID       = 0xf00
	regRID          = 0xf04
)

// access is TPM_ACCESS_x, one byte.
type access uint8

const (
	tpmRegValidSts   access = 1 << 7
	activeLocality   access = 1 << 5
	beenSeized       access = 1 << 4
	seize            access = 1 << 3
	pendingRequest   access = 1 << 2
	requestUse       access = 1 << 1
	tpmEstablishment access = 1 << 0 // set: no dynamic launch has happened
)

// sts is TPM_STS_x.
type sts uint32

const (
	stsFamily2       sts = 1 << 26
	stsCommandCancel sts = 1 << 24
	stsValid         sts = 1 << 7
	stsCommandReady  sts = 1 << 6
	stsGo            sts = 1 << 5
	stsDataAvail     sts = 1 << 4
	stsExpect        sts = 1 << 3
	stsSelfTestDone  sts = 1 << 2
	stsResponseRetry sts = 1 << 1

	stsBurstShift = 8 // burstCount is bits 8 to 23
	stsBurstMax   = 0xffff
)

// intfCap is TPM_INTF_CAPABILITY_x of an interface without interrupts: version
// 1.3 for TPM 2.0 and transfers of up to 64 bytes.
const intfCap = 3<<28 | 3<<9

// TPM_INTERFACE_ID_x and TPM_CRB_INTF_ID_x.
const (
	ifaceTypeFIFO       = 0
	ifaceTypeCRB        = 1
	ifaceVersionCRB     = 1 << 4
	ifaceCapLocality    = 1 << 8 // five localities
	ifaceCapDataXfer64  = 3 << 11
	ifaceCapFIFO        = 1 << 13
	ifaceCapCRB         = 1 << 14
	ifaceSelectorCRB    = 1 << 17
	ifaceSelectorLocked = 1 << 19

	interfaceIDFIFO = ifaceTypeFIFO | ifaceCapLocality | ifaceCapDataXfer64 | ifaceCapFIFO | ifaceSelectorLocked
	interfaceIDCRB  = ifaceTypeCRB | ifaceVersionCRB | ifaceCapLocality | ifaceCapDataXfer64 | ifaceCapCRB |
		ifaceSelectorCRB | ifaceSelectorLocked | revisionID<<24
)

// Identifiers: libtpms, the library of swtpm, gives IBM as the manufacturer.
const (
	vendorID   = 0x1014
	deviceID   = 1
	revisionID = 1
	didVID     = deviceID<<16 | vendorID
)

// CRB registers of a locality's page, with the names of the PTP (CRB Interface,
// "CRB Interface Locality and Control Area Registers").
const (
	crbLocState   = 0x00
	crbLocCtrl    = 0x08
	crbLocSts     = 0x0c
	crbIntfID     = 0x30
	crbIntfIDHigh = 0x34
	crbCtrlExt    = 0x38 // 8 bytes
	crbCtrlReq    = 0x40
	crbCtrlSts    = 0x44
	crbCtrlCancel = 0x48
	crbCtrlStart  = 0x4c
	crbIntEnable  = 0x50
	crbIntSts     = 0x54
	crbCmdSize    = 0x58
	crbCmdLow     = 0x5c
	crbCmdHigh    = 0x60
	crbRspSize    = 0x64
	crbRspLow     = 0x68
	crbRspHigh    = 0x6c
	crbData       = 0x80

	// CRBControlArea is the offset of the control area, which the TPM2 table
	// points to.
	CRBControlArea = crbCtrlReq
)

// Bits of the CRB registers.
const (
	locStateEstablished = 1 << 0 // set: no dynamic launch has happened
	locStateAssigned    = 1 << 1
	locStateActiveShift = 2
	locStateValid       = 1 << 7

	locCtrlRequest    = 1 << 0
	locCtrlRelinquish = 1 << 1
	locCtrlSeize      = 1 << 2

	locStsGranted    = 1 << 0
	locStsBeenSeized = 1 << 1

	ctrlReqCmdReady = 1 << 0
	ctrlReqGoIdle   = 1 << 1
	ctrlStsIdle     = 1 << 1
	ctrlCancel      = 1 << 0
	ctrlStart       = 1 << 0
)

// TPM 2.0 structures (TPM 2.0 Library, Part 1 "Command/Response Structure",
// Part 2 "TPM_ST", "TPM_RC", "TPM_CC").
const (
	headerSize = 10 // tag, size, code

	tpmSTNoSessions = 0x8001

	tpmRCFailure     = 0x101
	tpmRCCommandSize = 0x142

	tpmCCSelfTest = 0x143
)
