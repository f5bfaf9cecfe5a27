package fwcfg

import (
	"encoding/binary"

	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// dma runs the command at an address: struct FWCfgDmaAccess, big-endian
// control, length and address. It tells the outcome in the control field: 0, or
// the error bit.
//
// Preconditions: d.mu is held.
func (d *Device) dma(at mem.GPA) {
	var command [dmaCommandSize]byte
	if d.memory.ReadAt(command[:], at) != nil {
		return // nowhere to tell
	}
	control := binary.BigEndian.Uint32(command[0:])
	length := binary.BigEndian.Uint32(command[4:])
	address := mem.GPA(binary.BigEndian.Uint64(command[8:]))
	if control&dmaSelect != 0 {
		d.choose(uint16(control >> dmaSelectorShift))
	}
	ok := true
	switch {
	case control&dmaRead != 0:
		ok = d.dmaReadInto(address, length)
	case control&dmaWrite != 0:
		ok = d.dmaWriteFrom(address, length)
	case control&dmaSkip != 0:
		d.offset = min(d.offset+int64(length), endOfAll)
	}
	result := uint32(0)
	if !ok {
		result = dmaError
	}
	_ = d.memory.WriteAt(binary.BigEndian.AppendUint32(command[:0], result), at)
}

// dmaReadInto copies the next length bytes of the item into guest memory. What
// lies behind its end reads as zeroes, of which a command gets no more than
// maxZeroes: none has a reason to ask for more, and it holds up its CPU.
func (d *Device) dmaReadInto(address mem.GPA, length uint32) bool {
	to, err := d.memory.Slice(address, uint64(length))
	if err != nil {
		return false
	}
	left := int64(0)
	it := d.items[d.selector]
	if it != nil {
		left = max(it.source.Size()-d.offset, 0)
	}
	n := min(int64(length), left)
	if int64(length)-n > maxZeroes {
		return false
	}
	ok := true
	if n > 0 {
		read, _ := it.source.ReadAt(to[:n], d.offset)
		ok = int64(read) == n
	}
	clear(to[n:])
	d.offset = min(d.offset+int64(length), endOfAll)
	d.memory.MarkWritten(address, uint64(length))
	return ok
}

// dmaWriteFrom gives guest memory to the item, if it can be written there.
func (d *Device) dmaWriteFrom(address mem.GPA, length uint32) bool {
	it := d.items[d.selector]
	if it == nil || it.write == nil || d.offset > it.source.Size() || int64(length) > it.source.Size()-d.offset {
		return false
	}
	p := make([]byte, length) // no more than the file, which the host made
	if d.memory.ReadAt(p, address) != nil {
		return false
	}
	it.write(d.offset, p)
	d.offset += int64(length)
	d.aheadLen = 0
	return true
}
