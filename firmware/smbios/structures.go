package smbios

import "encoding/binary"

// structureType is a structure's type number (§7).
type structureType byte

const (
	typeBIOSInformation          structureType = 0
	typeSystemInformation        structureType = 1
	typeSystemEnclosure          structureType = 3
	typeOEMStrings               structureType = 11
	typePhysicalMemoryArray      structureType = 16
	typeMemoryDevice             structureType = 17
	typeMemoryArrayMappedAddress structureType = 19
	typeBootInformation          structureType = 32
	typeEndOfTable               structureType = 127

	noErrorInformation             = 0xfffe
	biosCharacteristicsUnsupported = 1 << 3 // §7.1.1
	biosExtension2VirtualMachine   = 1 << 4 // §7.1.2.2
)

var le = binary.LittleEndian

// biosInformation is type 0 (§7.1).
func (b *builder) biosInformation(c *Config) {
	var s stringSet
	f := []byte{s.add("gvmspawn"), s.add(c.BIOSVersion), 0, 0, s.add("01/01/2026"), 0}
	f = le.AppendUint64(f, biosCharacteristicsUnsupported)
	f = append(f, 0, biosExtension2VirtualMachine)
	f = append(f, 0, 0, 0xff, 0xff) // release 0.0, no embedded controller
	b.add(typeBIOSInformation, f, s...)
}

// systemInformation is type 1 (§7.2). §7.2.1: the UUID's first three fields
// are little-endian.
func (b *builder) systemInformation(c *Config) {
	var s stringSet
	f := []byte{s.add(c.Manufacturer), s.add(c.Product), s.add(c.Version), s.add(c.Serial)}
	u := c.UUID
	f = append(f, u[3], u[2], u[1], u[0], u[5], u[4], u[7], u[6])
	f = append(f, u[8:]...)
	const wakeUpPowerSwitch = 6
	f = append(f, wakeUpPowerSwitch, s.add(c.SKU), s.add(c.Family))
	b.add(typeSystemInformation, f, s...)
}

// chassis is type 3 (§7.4).
func (b *builder) chassis(c *Config) {
	const (
		chassisOther = 1
		stateSafe    = 3
		securityNone = 3
	)
	var s stringSet
	f := []byte{s.add(c.Manufacturer), chassisOther, s.add(c.Version), 0, 0,
		stateSafe, stateSafe, stateSafe, securityNone,
		0, 0, 0, 0, // OEM-defined
		0, 0, 0, 0, // height, power cords, contained elements
		s.add(c.SKU)}
	b.add(typeSystemEnclosure, f, s...)
}

// What Linux copies of counted strings, in bytes: half of what it has, and for
// each string its device (struct dmi_device) and the NUL.
const (
	linuxCopies  = 32 << 10
	linuxPerCopy = 64
)

// maxCount is how many strings a structure can count (§7.12).
const maxCount = 255

// allOEMStrings spreads strings over structures of type 11: the first ones, as
// many as Linux can copy, are counted, the others are not.
func (b *builder) allOEMStrings(strs []string) {
	counted, used := 0, 0
	for ; counted < len(strs); counted++ {
		if used += len(strs[counted]) + linuxPerCopy; used > linuxCopies {
			break
		}
	}
	for i := 0; i < len(strs); {
		end, count := min(i+maxCount, counted), 0
		if i < counted {
			count = end - i
		} else {
			end = min(i+maxCount, len(strs))
		}
		b.oemStrings(byte(count), strs[i:end])
		i = end
	}
}

// oemStrings is type 11 (§7.12).
func (b *builder) oemStrings(count byte, strs []string) {
	b.add(typeOEMStrings, []byte{count}, strs...)
}

// memory is types 16, 17 and 19: one array with one device that is mapped at
// every range.
func (b *builder) memory(ram []Range) {
	var total uint64
	for _, r := range ram {
		total += r.Size
	}
	array := b.memoryArray(total)
	b.memoryDevice(array, total)
	for _, r := range ram {
		b.mappedAddress(array, r)
	}
}

// memoryArray is type 16 (§7.17).
func (b *builder) memoryArray(total uint64) uint16 {
	const (
		locationSystemBoard = 3
		useSystemMemory     = 3
		eccNone             = 3
		inExtended          = 0x8000_0000 // KiB; 2 TiB and more are in bytes behind it
	)
	f := []byte{locationSystemBoard, useSystemMemory, eccNone}
	kib, extended := total>>10, uint64(0)
	if kib >= inExtended {
		kib, extended = inExtended, total
	}
	f = le.AppendUint32(f, uint32(kib))
	f = le.AppendUint16(f, noErrorInformation)
	f = le.AppendUint16(f, 1)
	f = le.AppendUint64(f, extended)
	return b.add(typePhysicalMemoryArray, f)
}

// memoryDevice is type 17 (§7.18).
func (b *builder) memoryDevice(array uint16, total uint64) {
	const (
		unknownWidth   = 0xffff
		formFactorDIMM = 9
		typeRAM        = 7
		detailOther    = 1 << 1
		inKiB          = 1 << 15
		inExtended     = 0x7fff
	)
	var s stringSet
	f := le.AppendUint16(nil, array)
	f = le.AppendUint16(f, noErrorInformation)
	f = le.AppendUint16(f, unknownWidth)
	f = le.AppendUint16(f, unknownWidth)
	size, extended := total>>20, uint64(0)
	switch {
	case total%(1<<20) != 0 && total>>10 < inExtended:
		size = total>>10 | inKiB
	case size >= inExtended:
		size, extended = inExtended, size
	}
	f = le.AppendUint16(f, uint16(size))
	f = append(f, formFactorDIMM, 0, s.add("DIMM 0"), 0, typeRAM)
	f = le.AppendUint16(f, detailOther)
	f = le.AppendUint16(f, 0) // speed unknown
	f = append(f, 0, 0, 0, 0) // manufacturer, serial, asset tag, part number
	f = append(f, 0)          // rank unknown
	f = le.AppendUint32(f, uint32(extended))
	f = append(f, make([]byte, 8)...) // configured speed and voltages unknown
	b.add(typeMemoryDevice, f, s...)
}

// mappedAddress is type 19 (§7.20). Addresses are in KiB, the last inclusive;
// from 4 TiB on the extended fields hold them in bytes.
func (b *builder) mappedAddress(array uint16, r Range) {
	const inExtended = 0xffff_ffff
	first, last := uint64(r.Base), uint64(r.Base)+r.Size-1
	var f []byte
	if last>>10 < inExtended {
		f = le.AppendUint32(f, uint32(first>>10))
		f = le.AppendUint32(f, uint32(last>>10))
		first, last = 0, 0
	} else {
		f = le.AppendUint32(f, inExtended)
		f = le.AppendUint32(f, inExtended)
	}
	f = le.AppendUint16(f, array)
	f = append(f, 1) // one device forms a row
	f = le.AppendUint64(f, first)
	f = le.AppendUint64(f, last)
	b.add(typeMemoryArrayMappedAddress, f)
}
