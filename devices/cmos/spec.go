package cmos

// Registers of the MC146818A (Motorola, 1988), figure 10.
const (
	regSeconds      = 0x00
	regSecondsAlarm = 0x01
	regMinutes      = 0x02
	regMinutesAlarm = 0x03
	regHours        = 0x04
	regHoursAlarm   = 0x05
	regDayOfWeek    = 0x06 // 1 is Sunday
	regDayOfMonth   = 0x07
	regMonth        = 0x08
	regYear         = 0x09
	regA            = 0x0a
	regB            = 0x0b
	regC            = 0x0c
	regD            = 0x0d

	regCentury = 0x32 // named by the FADT's CENTURY on real machines
	size       = 0x80
)

// Memory sizes where PC firmware looks for them.
const (
	cmosBaseLow  = 0x15 // KiB below 640 KiB
	cmosExtLow   = 0x17 // KiB from 1 MiB, at most 0xffff
	cmosExtLow2  = 0x30 // the same
	cmosAbove16M = 0x34 // 64 KiB units from 16 MiB to the hole
	cmosAbove4G  = 0x5b // 64 KiB units from 4 GiB, three bytes
	cmosCPUs     = 0x5f // number of CPUs less one
)

// statusA is register A.
type statusA uint8

const (
	aUIP    statusA = 1 << 7 // update in progress
	aDVOn   statusA = 2 << 4 // 32.768 kHz, running
	aRS     statusA = 0xf    // periodic rate
	aReset  statusA = aDVOn | 6
	divider statusA = 6 << 4 // divider held in reset: 6 and 7
)

// statusB is register B.
type statusB uint8

const (
	b24  statusB = 1 << 1
	bDM  statusB = 1 << 2 // binary
	bUIE statusB = 1 << 4
	bAIE statusB = 1 << 5
	bPIE statusB = 1 << 6
	bSET statusB = 1 << 7
)

// statusC is register C.
type statusC uint8

const (
	cUF   statusC = 1 << 4
	cAF   statusC = 1 << 5
	cPF   statusC = 1 << 6
	cIRQF statusC = 1 << 7
)

// dVRT is register D's "valid RAM and time".
const dVRT = 1 << 7
