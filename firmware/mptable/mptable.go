// Package mptable builds the tables that tell a kernel without ACPI of CPUs and
// interrupt controllers: MultiProcessor Specification, version 1.4 (Intel, 1997).
package mptable

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/gvmspawn/gvmspawn/vmm/layout"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// Sizes in bytes and entry types (§4.1, §4.2, §4.3).
const (
	pointerSize = 16
	headerSize  = 44

	entryProcessor = 0
	entryBus       = 1
	entryIOAPIC    = 2
	entryIOInt     = 3
	entryLocalInt  = 4

	specRevision = 4 // 1.4
)

// Field values (§4.3.1 to §4.3.5).
const (
	cpuEnabled = 1 << 0
	cpuBoot    = 1 << 1

	ioapicEnabled = 1 << 0

	intINT    = 0
	intNMI    = 1
	intExtINT = 3

	allAPICs = 0xff
	busISA   = 0

	apicVersion = 0x14
	// cpuSignature and cpuFeatures are what a reader takes for a processor's
	// CPUID leaf 1: family 6, with FPU and APIC.
	cpuSignature = 6 << 8
	cpuFeatures  = 1<<0 | 1<<9
)

// maxAPICID is the largest APIC ID that the tables can tell, with one left for the
// I/O APIC.
const maxAPICID = 253

// Write puts the tables of a machine whose CPUs, 1 to layout.MaxVCPUs, have these
// APIC IDs, 0 to 253, into guest memory at layout.MPTable, where a kernel looks for
// them.
func Write(m *mem.Memory, apicIDs []uint32) error {
	if n := len(apicIDs); n < 1 || n > layout.MaxVCPUs {
		return fmt.Errorf("MP tables: %d CPUs, must be 1 to %d", n, layout.MaxVCPUs)
	}
	if id := slices.Max(apicIDs); id > maxAPICID {
		return fmt.Errorf("MP tables: an APIC ID of %d, the largest possible is %d", id, maxAPICID)
	}
	b := append(pointer(), table(apicIDs)...)
	if len(b) > layout.MPTableSize {
		return fmt.Errorf("MP tables: %d bytes do not fit into %d", len(b), layout.MPTableSize)
	}
	return m.WriteAt(b, layout.MPTable)
}

// pointer is the floating pointer structure (§4.1); the table follows it.
func pointer() []byte {
	b := append([]byte("_MP_"), 0, 0, 0, 0, 1, specRevision, 0, 0, 0, 0, 0, 0)
	binary.LittleEndian.PutUint32(b[4:], layout.MPTable+pointerSize)
	b[10] = checksum(b)
	return b
}

// table is the configuration table (§4.2) with its entries, in the order of
// their types: CPUs, the ISA bus, the I/O APIC, interrupts.
func table(apicIDs []uint32) []byte {
	le := binary.LittleEndian
	b := append([]byte("PCMP"), 0, 0, specRevision, 0)
	b = append(b, "GVMSPAWNVIRTUAL     "...) // OEM and product, 8 and 12 characters
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)    // no OEM table; the count of entries
	b = le.AppendUint32(b, layout.LocalAPIC)
	b = append(b, 0, 0, 0, 0) // no extended table
	for i, id := range apicIDs {
		flags := byte(cpuEnabled)
		if i == 0 {
			flags |= cpuBoot
		}
		b = append(b, entryProcessor, byte(id), apicVersion, flags)
		b = le.AppendUint32(b, cpuSignature)
		b = le.AppendUint32(b, cpuFeatures)
		b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	}
	b = append(b, entryBus, busISA, 'I', 'S', 'A', ' ', ' ', ' ')
	ioapic := byte(slices.Max(apicIDs) + 1)
	b = append(b, entryIOAPIC, ioapic, apicVersion, ioapicEnabled)
	b = le.AppendUint32(b, layout.IOAPIC)
	// Each pin is an ISA interrupt of its own number, "conforms to the bus":
	// edge-triggered and active high. IRQ 0 is on its usual pin.
	for pin := range byte(layout.GSIPins) {
		irq := pin
		switch pin {
		case 0:
			continue
		case layout.GSIPIT:
			irq = 0
		}
		b = append(b, entryIOInt, intINT, 0, 0, busISA, irq, ioapic, pin)
	}
	b = append(b, entryLocalInt, intExtINT, 0, 0, busISA, 0, 0, 0)
	b = append(b, entryLocalInt, intNMI, 0, 0, busISA, 0, allAPICs, 1)
	le.PutUint16(b[4:], uint16(len(b)))
	le.PutUint16(b[34:], uint16(len(apicIDs)+1+1+layout.GSIPins-1+2))
	b[7] = checksum(b)
	return b
}

// checksum is what makes the sum of all bytes zero.
func checksum(b []byte) byte {
	var sum byte
	for _, v := range b {
		sum += v
	}
	return -sum
}
