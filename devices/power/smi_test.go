package power

import "testing"

// TestSMIEnable: SMI_EN decides whether the APM port raises SMIs, and SMI_LOCK keeps
// GBL_SMI_EN as it is (Intel ICH9 datasheet §13.8.1.1, §13.8.3.8).
func TestSMIEnable(t *testing.T) {
	c := &ICH9{}
	for _, v := range []uint64{0, smiGlobal, smiAPM} {
		if c.Write(smiEnable, 4, v); c.APMRaisesSMI() {
			t.Errorf("SMI_EN %#x raises SMIs", v)
		}
	}
	c.Write(smiEnable, 4, smiGlobal|smiAPM)
	c.LockSMI()
	c.Write(smiEnable, 4, smiAPM)
	if !c.APMRaisesSMI() || c.Read(smiEnable, 4) != smiGlobal|smiAPM {
		t.Errorf("locked SMI_EN is %#x", c.Read(smiEnable, 4))
	}
	if c.Reset(); c.Read(smiEnable, 4) != 0 {
		t.Error("a reset does not unlock it")
	}
}
