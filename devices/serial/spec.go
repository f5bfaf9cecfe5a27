package serial

// Registers of the PC16550D (National Semiconductor, June 1995), table II.
const (
	regData = 0 // RBR, THR; DLL with DLAB
	regIER  = 1 // DLM with DLAB
	regIIR  = 2 // FCR on write
	regLCR  = 3
	regMCR  = 4
	regLSR  = 5
	regMSR  = 6
	regSCR  = 7
	numRegs = 8

	fifoSize = 16
)

// ier is the Interrupt Enable Register (§8.7).
type ier uint8

const (
	ierERBFI ier = 1 << 0 // received data
	ierETBEI ier = 1 << 1 // transmitter holding register empty
	ierELSI  ier = 1 << 2 // receiver line status
	ierEDSSI ier = 1 << 3 // modem status
	ierMask  ier = 0xf
)

// iir is the Interrupt Identification Register (§8.6, table IV).
type iir uint8

const (
	iirModem   iir = 0x0
	iirNone    iir = 0x1
	iirTHRE    iir = 0x2
	iirData    iir = 0x4
	iirLine    iir = 0x6
	iirTimeout iir = 0xc
	iirFIFO    iir = 0xc0
)

// fcr is the FIFO Control Register (§8.5).
type fcr uint8

const (
	fcrEnable  fcr = 1 << 0
	fcrClearRX fcr = 1 << 1
	fcrClearTX fcr = 1 << 2
)

// triggers are the receiver's trigger levels in bytes by bits 6 and 7 of FCR.
var triggers = [4]int{1, 4, 8, 14}

// lcr is the Line Control Register (§8.3).
type lcr uint8

const (
	lcrDLAB lcr = 1 << 7
)

// lsr is the Line Status Register (§8.4).
type lsr uint8

const (
	lsrDR   lsr = 1 << 0 // data ready
	lsrOE   lsr = 1 << 1 // overrun
	lsrBI   lsr = 1 << 4 // break
	lsrTHRE lsr = 1 << 5 // transmitter holding register empty
	lsrTEMT lsr = 1 << 6 // transmitter empty
	lsrErr  lsr = 1 << 7 // an error is in the receiver FIFO
)

// mcr is the Modem Control Register (§8.8).
type mcr uint8

const (
	mcrDTR  mcr = 1 << 0
	mcrRTS  mcr = 1 << 1
	mcrOUT1 mcr = 1 << 2
	mcrOUT2 mcr = 1 << 3
	mcrLoop mcr = 1 << 4
	mcrMask mcr = 0x1f
)

// msr is the Modem Status Register (§8.9).
type msr uint8

const (
	msrDCTS msr = 1 << 0
	msrDDSR msr = 1 << 1
	msrTERI msr = 1 << 2
	msrDDCD msr = 1 << 3
	msrCTS  msr = 1 << 4
	msrDSR  msr = 1 << 5
	msrRI   msr = 1 << 6
	msrDCD  msr = 1 << 7

	msrDeltas msr = 0xf
)
