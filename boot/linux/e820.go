package linux

import (
	"fmt"
	"slices"

	"github.com/gvmspawn/gvmspawn/vmm/layout"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// memoryMap makes the E820 map: RAM where m has RAM, minus the legacy hole and
// extra, plus the reserved ranges themselves. It is sorted and free of overlaps.
func memoryMap(m *mem.Memory, extra []Range) ([]Range, error) {
	holes := append([]Range{
		{layout.EBDAStart, layout.LegacyHoleEnd - layout.EBDAStart, E820Reserved},
		// Linux uses the MCFG area only if the memory map or the ACPI namespace reserves it.
		{layout.ECAM, layout.ECAMSize, E820Reserved},
	}, extra...)
	byBase := func(a, b Range) int {
		if a.Base < b.Base {
			return -1
		}
		return 1
	}
	slices.SortFunc(holes, byBase)
	for i, h := range holes {
		if h.Base+mem.GPA(h.Size) < h.Base {
			return nil, fmt.Errorf("memory map: range %#x+%#x is too long", h.Base, h.Size)
		}
		if i > 0 && h.Base < holes[i-1].Base+mem.GPA(holes[i-1].Size) {
			return nil, fmt.Errorf("memory map: reserved ranges at %#x and %#x overlap", holes[i-1].Base, h.Base)
		}
	}
	out := slices.Clone(holes)
	for _, r := range m.Regions() {
		if r.Kind == mem.RAM {
			out = appendRAM(out, r.Base, r.End(), holes)
		}
	}
	slices.SortFunc(out, byBase)
	if len(out) > e820MaxInPage {
		return nil, fmt.Errorf("memory map: %d ranges, but boot_params has room for %d", len(out), e820MaxInPage)
	}
	return out, nil
}

// appendRAM adds [from, to) without the holes, which are sorted.
func appendRAM(out []Range, from, to mem.GPA, holes []Range) []Range {
	for _, h := range holes {
		end := h.Base + mem.GPA(h.Size)
		if end <= from || h.Base >= to {
			continue
		}
		if h.Base > from {
			out = append(out, Range{from, uint64(h.Base - from), E820RAM})
		}
		from = max(from, end)
	}
	if from < to {
		out = append(out, Range{from, uint64(to - from), E820RAM})
	}
	return out
}
