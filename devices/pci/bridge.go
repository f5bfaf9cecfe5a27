package pci

import "encoding/binary"

// Registers of the host bridge (Intel 3 Series Express chipset datasheet §5.1)
// that firmware reads and writes. What they would control is described at
// Config.ECAM, or does not exist: memory between 0xc0000 and 0x100000 is always
// RAM (PAM), and system management RAM is the engine's matter.
const (
	hostPAM     = 0x90 // seven bytes
	hostSMRAM   = 0x9c // in its byte 1; byte 2 is ESMRAMC
	hostSMRAMC  = 0x02 // C_BASE_SEG, always on
	hostGBSM    = 0xa4 // GBSM, BGSM, TSEGMB, TOLUD: firmware's memory map, kept for it
	hostTOLUD   = 0xb0
	hostExtTSEG = 0x50 // two bytes, QEMU's: the size of a large TSEG in MiB

	smramByte    = hostSMRAM + 1
	smramOpen    = 1 << 6 // D_OPEN
	smramLock    = 1 << 4 // D_LCK
	smramEnable  = 1 << 3 // G_SMRAME
	esmramcByte  = hostSMRAM + 2
	esmramcTSEG  = 1 << 0 // T_EN
	esmramcCache = 0x38   // SM_CACHE, SM_L1, SM_L2: always on
	pciexbarSize = 3 << 1
	pciexbarOn   = 1 << 0
)

// newBridge makes the function at slot 0.
func (h *Host) newBridge() *Function {
	f := NewFunction("host bridge", ID{Vendor: hostVendor, Device: hostDevice, SubVendor: hostSubVendor, Subsystem: hostSubsystem, Class: hostClass})
	if h.cfg.ECAM != 0 {
		// Firmware writes ECAM's base here and expects to read it back. The
		// window itself does not move.
		f.SetRegister(hostPCIEXBAR, uint32(h.cfg.ECAM)|pciexbarOn, ^uint32(0))
		f.SetRegister(hostPCIEXBAR+4, uint32(h.cfg.ECAM>>32), ^uint32(0))
		return f
	}
	f.SetRegister(hostPCIEXBAR, 0, 0xf000_0000|pciexbarSize|pciexbarOn)
	f.SetRegister(hostPCIEXBAR+4, 0, 0xf)
	f.SetRegister(hostPAM, 0, ^uint32(0))
	f.SetRegister(hostPAM+4, 0, 0x00ff_ffff)
	f.SetRegister(hostSMRAM, hostSMRAMC<<8, 0x00ff_5800)
	if h.cfg.HideSMRAM != nil {
		f.SetRegister(hostExtTSEG, uint32(h.cfg.SMRAMSize>>20), 0)
		f.SetRegister(hostSMRAM, esmramcCache<<16|hostSMRAMC<<8, 0x0087_7800)
	}
	for off := hostGBSM; off <= hostTOLUD; off += 4 {
		f.SetRegister(off, 0, ^uint32(0))
	}
	f.onWrite = func(off, size int) {
		if touches(off, size, hostPCIEXBAR, 8) {
			h.moveECAM(f.cfg[:])
		}
		if h.cfg.HideSMRAM != nil && touches(off, size, smramByte, 2) {
			h.guardSMRAM(f)
		}
	}
	return f
}

// guardSMRAM does what SMRAM and ESMRAMC say (§5.1.27, §5.1.28): TSEG is hidden from
// CPUs that are not in SMM while it is on, and once locked it stays so until a
// reset. There is no other SMRAM.
func (h *Host) guardSMRAM(f *Function) {
	if f.cfg[smramByte]&smramLock != 0 {
		f.cfg[smramByte] &^= smramOpen
		f.Freeze(smramByte, 0xff)
		f.Freeze(esmramcByte, 0xff)
	}
	h.cfg.HideSMRAM(f.cfg[smramByte]&smramEnable != 0 && f.cfg[esmramcByte]&esmramcTSEG != 0)
}

// moveECAM puts ECAM where PCIEXBAR says. It stays away while the register says
// off, or an address outside the low window, or one where a BAR is.
func (h *Host) moveECAM(cfg []byte) {
	v := binary.LittleEndian.Uint64(cfg[hostPCIEXBAR:])
	// 256, 128 or 64 buses of 1 MiB (§5.1.17); 3 is reserved.
	size := uint64(256<<20) >> (v & pciexbarSize >> 1)
	at := v &^ (1<<28 - 1)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ecam != 0 {
		h.space.Unmap(h.ecam)
		h.ecam = 0
	}
	if v&pciexbarOn != 0 && h.cfg.Low.holds(at, size) && h.space.Map("PCI ECAM", at, size, ecam{h}) == nil {
		h.ecam = at
	}
}

// ECAMBase is where ECAM is now, or 0.
func (h *Host) ECAMBase() uint64 {
	if h.cfg.ECAM != 0 {
		return h.cfg.ECAM
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ecam
}
