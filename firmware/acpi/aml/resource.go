package aml

import "encoding/binary"

// ResourceTemplate is the buffer of a _CRS: the descriptors and an end tag,
// whose checksum 0 means "none" (§6.4.2.9).
func ResourceTemplate(descriptors ...Term) Term {
	return Buffer(append(join(descriptors...), 0x79, 0))
}

// IO is n ports at port, all 16 address bits decoded (§6.4.2.5).
func IO(port uint16, n uint8) Term {
	d := Term{0x47, 1}
	d = binary.LittleEndian.AppendUint16(d, port)
	d = binary.LittleEndian.AppendUint16(d, port)
	return append(d, 1, n)
}

// IRQNoFlags is the edge-triggered, active-high ISA interrupt irq, 0 to 15 (§6.4.2.1).
func IRQNoFlags(irq uint) Term {
	return binary.LittleEndian.AppendUint16(Term{0x22}, 1<<irq)
}

// Trigger is how an interrupt is signalled.
type Trigger byte

// Triggers, in the place of the extended interrupt descriptor's flags.
const (
	Level Trigger = 0
	Edge  Trigger = 1 << 1
)

// Interrupt is an active-high, exclusive global system interrupt that the
// device consumes (§6.4.3.6).
func Interrupt(t Trigger, gsi uint32) Term {
	d := Term{0x89, 6, 0, 1<<0 | byte(t), 1}
	return binary.LittleEndian.AppendUint32(d, gsi)
}

// Memory32Fixed is a read-write range below 4 GiB (§6.4.3.4).
func Memory32Fixed(base, size uint32) Term {
	d := Term{0x86, 9, 0, 1}
	d = binary.LittleEndian.AppendUint32(d, base)
	return binary.LittleEndian.AppendUint32(d, size)
}

// Address space descriptors (§6.4.3.5): the resource types, the general flags
// "minimum and maximum fixed, positive decode", and type specific flags.
const (
	spaceMemory = 0
	spaceIO     = 1
	spaceBus    = 2

	rangeFixed = 1<<2 | 1<<3

	memReadWrite = 1 << 0
	ioEntire     = 3 << 0
)

// WordBusNumber is the buses first to last that a bridge produces.
func WordBusNumber(first, last uint16) Term {
	return wordSpace(spaceBus, 0, first, last)
}

// WordIO is the ports first to last that a bridge produces.
func WordIO(first, last uint16) Term { return wordSpace(spaceIO, ioEntire, first, last) }

func wordSpace(kind, flags byte, first, last uint16) Term {
	d := Term{0x88, 13, 0, kind, rangeFixed, flags}
	for _, v := range []uint16{0, first, last, 0, last - first + 1} {
		d = binary.LittleEndian.AppendUint16(d, v)
	}
	return d
}

// DWordMemory is the uncached window from first to last, below 4 GiB, that a
// bridge produces.
func DWordMemory(first, last uint32) Term {
	d := Term{0x87, 23, 0, spaceMemory, rangeFixed, memReadWrite}
	for _, v := range []uint32{0, first, last, 0, last - first + 1} {
		d = binary.LittleEndian.AppendUint32(d, v)
	}
	return d
}

// QWordMemory is the uncached window from first to last that a bridge produces.
func QWordMemory(first, last uint64) Term {
	d := Term{0x8a, 43, 0, spaceMemory, rangeFixed, memReadWrite}
	for _, v := range []uint64{0, first, last, 0, last - first + 1} {
		d = binary.LittleEndian.AppendUint64(d, v)
	}
	return d
}
