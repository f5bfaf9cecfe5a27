package pci

import (
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// TestSMRAM: TSEG is hidden while G_SMRAME and T_EN are set, and D_LCK keeps both
// (Intel 3 Series Express chipset datasheet §5.1.27, §5.1.28).
func TestSMRAM(t *testing.T) {
	hidden := false
	var space bus.Space
	h, err := NewHost(&space, Config{
		Low: Window{0x8000_0000, 0xfc00_0000}, High: Window{1 << 32, 1 << 40},
		HideSMRAM: func(on bool) { hidden = on }, SMRAMSize: 16 << 20,
	})
	if err != nil {
		t.Fatal(err)
	}
	f := h.Functions()[0]
	if n := f.ReadConfig(hostExtTSEG, 2); n != 16 {
		t.Errorf("TSEG of %d MiB", n)
	}
	f.WriteConfig(hostExtTSEG, 2, 0xffff)
	if n := f.ReadConfig(hostExtTSEG, 2); n != 16 || f.ReadConfig(esmramcByte, 1) != esmramcCache {
		t.Errorf("TSEG of %d MiB, ESMRAMC %#x", n, f.ReadConfig(esmramcByte, 1))
	}
	for _, step := range []struct {
		off    int
		v      uint64
		hidden bool
	}{
		{esmramcByte, esmramcTSEG, false},
		{smramByte, smramEnable, true},
		{esmramcByte, 0, false},
		{esmramcByte, esmramcTSEG, true},
		{smramByte, smramEnable | smramOpen | smramLock, true},
		{esmramcByte, 0, true},
		{smramByte, 0, true},
	} {
		if f.WriteConfig(step.off, 1, step.v); hidden != step.hidden {
			t.Errorf("%#x at %#x: hidden %v", step.v, step.off, hidden)
		}
	}
	if v := f.ReadConfig(smramByte, 1); v != smramEnable|smramLock|hostSMRAMC {
		t.Errorf("locked SMRAM is %#x", v)
	}
}
