package lapic

// Register offsets of the xAPIC page (Intel SDM vol. 3A table 11-1). MSR
// 0x800 + offset/16 is the same register in x2APIC mode (table 11-6).
const (
	regID      = 0x020
	regVersion = 0x030
	regTPR     = 0x080
	regAPR     = 0x090
	regPPR     = 0x0a0
	regEOI     = 0x0b0
	regRRD     = 0x0c0
	regLDR     = 0x0d0
	regDFR     = 0x0e0
	regSVR     = 0x0f0
	regISR     = 0x100 // to 0x170
	regTMR     = 0x180 // to 0x1f0
	regIRR     = 0x200 // to 0x270
	regESR     = 0x280
	regICRLow  = 0x300
	regICRHigh = 0x310
	regLVT     = 0x320 // timer, thermal, performance, LINT0, LINT1, error
	regLVTEnd  = 0x370
	regTICR    = 0x380
	regTCCR    = 0x390
	regDCR     = 0x3e0
	regSelfIPI = 0x3f0 // x2APIC only
)

// MSRs.
const (
	MSRAPICBase    = 0x1b
	MSRTSCDeadline = 0x6e0
	MSRX2APICFirst = 0x800
	MSRX2APICLast  = 0x8ff
)

// IA32_APIC_BASE (§11.4.4, §11.12.1).
const (
	baseBSP      = 1 << 8
	baseEXTD     = 1 << 10
	baseEN       = 1 << 11
	baseAddress  = 1<<52 - 1<<12
	baseReserved = ^uint64(baseBSP | baseEXTD | baseEN | baseAddress)
)

// version: integrated APIC, six LVT entries, EOI-broadcast suppression (§11.4.8).
const version = 0x14 | (numLVT-1)<<16 | 1<<24

// Spurious-interrupt vector register (§11.9).
const (
	svrEnabled     = 1 << 8
	svrSuppressEOI = 1 << 12
	svrMask        = 0xff | svrEnabled | svrSuppressEOI
)

// Local vector table (§11.5.1, figure 11-8): indices and bits.
const (
	lvtTimer = iota
	lvtThermal
	lvtPerf
	lvtLINT0
	lvtLINT1
	lvtError
	numLVT

	lvtVector       = 0xff
	lvtModeShift    = 8
	lvtLevel        = 1 << 15
	lvtMasked       = 1 << 16
	lvtPeriodic     = 1 << 17
	lvtTSCDeadline  = 2 << 17
	lvtTimerModes   = 3 << 17
	lvtDeliveryMode = 7 << lvtModeShift
)

// lvtMasks are the writable bits of each entry; status bits are read-only.
var lvtMasks = [numLVT]uint32{
	lvtTimer:   lvtVector | lvtMasked | lvtTimerModes,
	lvtThermal: lvtVector | lvtMasked | lvtDeliveryMode,
	lvtPerf:    lvtVector | lvtMasked | lvtDeliveryMode,
	lvtLINT0:   lvtVector | lvtMasked | lvtDeliveryMode | 1<<13 | lvtLevel,
	lvtLINT1:   lvtVector | lvtMasked | lvtDeliveryMode | 1<<13 | lvtLevel,
	lvtError:   lvtVector | lvtMasked,
}

// deliveryMode is how a message acts on its target (§11.6.1, §11.11.2).
type deliveryMode uint8

const (
	modeFixed  deliveryMode = 0
	modeLowest deliveryMode = 1
	modeSMI    deliveryMode = 2
	modeNMI    deliveryMode = 4
	modeINIT   deliveryMode = 5
	modeSIPI   deliveryMode = 6
	modeExtINT deliveryMode = 7
)

// Interrupt command register (§11.6.1, figure 11-12; §11.12.9 for x2APIC).
const (
	icrModeShift   = 8
	icrLogical     = 1 << 11
	icrBusy        = 1 << 12
	icrAssert      = 1 << 14
	icrLevel       = 1 << 15
	icrShortShift  = 18
	icrMask        = 0xff | 7<<8 | icrLogical | icrAssert | icrLevel | 3<<icrShortShift
	icrX2Reserved  = uint64(0xffff_ffff &^ (icrMask | icrBusy))
	shortNone      = 0
	shortSelf      = 1
	shortAll       = 2
	broadcast8     = 0xff
	broadcast32    = 0xffff_ffff
	firstVector    = 16 // lower ones are exceptions and illegal (§11.5.2)
	dfrFlat        = 0xf
	dfrOnes        = 0x0fff_ffff
	msiAddress     = 0xfee0_0000 // §11.11.1
	msiAddressMask = 0xfff0_0000
)

// Error status register (§11.5.3).
const (
	esrSendIllegal    = 1 << 5
	esrReceiveIllegal = 1 << 6
	esrIllegalAddress = 1 << 7
)
