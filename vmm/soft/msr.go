package soft

import "github.com/gvmspawn/gvmspawn/vmm/vcpu"

// Model-specific registers (SDM vol. 4; Linux's kvm_para.h for 0x4b564dxx).
const (
	msrTSC          = 0x10
	msrAPICBase     = 0x1b
	msrTSCAdjust    = 0x3b
	msrSpecCtrl     = 0x48
	msrPredCmd      = 0x49
	msrUcodeRev     = 0x8b
	msrPlatformInfo = 0xce
	msrMTRRCap      = 0xfe
	msrArchCap      = 0x10a
	msrSysenterCS   = 0x174
	msrSysenterESP  = 0x175
	msrSysenterEIP  = 0x176
	msrMCGCap       = 0x179
	msrMCGStatus    = 0x17a
	msrMiscEnable   = 0x1a0
	msrPAT          = 0x277
	msrMTRRDefType  = 0x2ff
	msrTSCDeadline  = 0x6e0
	msrX2APICFirst  = 0x800
	msrX2APICLast   = 0x8ff
	msrEFER         = 0xc0000080
	msrSTAR         = 0xc0000081
	msrLSTAR        = 0xc0000082
	msrCSTAR        = 0xc0000083
	msrFMASK        = 0xc0000084
	msrFSBase       = 0xc0000100
	msrGSBase       = 0xc0000101
	msrKernelGSBase = 0xc0000102
	msrTSCAux       = 0xc0000103

	msrKVMWallClockOld  = 0x11
	msrKVMSystemTimeOld = 0x12
	msrKVMWallClock     = 0x4b564d00
	msrKVMSystemTime    = 0x4b564d01
)

// archCapabilities says that none of the known speculation bugs is there:
// RDCL_NO, IBRS_ALL, SKIP_L1DFL, SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO,
// SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO, ITS_NO.
const archCapabilities = 1<<0 | 1<<1 | 1<<3 | 1<<4 | 1<<5 | 1<<6 | 1<<8 | 1<<13 | 1<<14 | 1<<15 |
	1<<20 | 1<<24 | 1<<26 | 1<<27 | 1<<62

// quiet are registers that systems read or write without looking at CPUID
// first. They read as zero and ignore writes.
func quiet(n uint32) bool {
	switch n {
	case msrUcodeRev, msrPlatformInfo, msrMCGCap, msrMCGStatus, 0x17, 0x2a, 0x34, 0x140, 0x1d9, 0x186, 0x187, 0xc1, 0xc2,
		0x38d, 0x38e, 0x38f, 0x390, 0x309, 0x3f1, 0x79, 0x198, 0x199, 0x19a, 0x19b, 0x19c, 0x1b0, 0x1a2, 0x606, 0x611, 0x639, 0x641, 0x619,
		0xc0010015, 0xc001001f:
		return true
	}
	return false
}

// readMSR is RDMSR; false is #GP.
func (c *CPU) readMSR(n uint32) (uint64, bool) {
	s := c.s
	switch n {
	case msrTSC:
		return c.tsc(), true
	case msrTSCAdjust:
		return c.tscAdjust, true
	case msrTSCAux:
		return c.tscAux, true
	case msrEFER:
		return s.EFER, true
	case msrSTAR:
		return c.star, true
	case msrLSTAR:
		return c.lstar, true
	case msrCSTAR:
		return c.cstar, true
	case msrFMASK:
		return c.fmask, true
	case msrFSBase:
		return s.Seg[vcpu.FS].Base, true
	case msrGSBase:
		return s.Seg[vcpu.GS].Base, true
	case msrKernelGSBase:
		return c.kernelGS, true
	case msrSysenterCS:
		return c.sysenterCS, true
	case msrSysenterESP:
		return c.sysenterESP, true
	case msrSysenterEIP:
		return c.sysenterEIP, true
	case msrArchCap:
		return archCapabilities, true
	case msrMiscEnable:
		return 1 | 1<<11 | 1<<12, true // fast strings; no BTS, no PEBS
	case msrMTRRCap:
		return 8 | 1<<8 | 1<<10, true // 8 variable ranges, fixed ranges, WC
	case msrPAT:
		return c.pat, true
	case msrSpecCtrl:
		return c.specCtrl, true
	case msrPredCmd:
		return 0, false
	case msrKVMSystemTime, msrKVMSystemTimeOld:
		return c.pvclock, true
	case msrKVMWallClock, msrKVMWallClockOld:
		return c.vm.wallClock.Load(), true
	}
	if p := c.mtrr(n); p != nil {
		return *p, true
	}
	if v, ok, mine := c.apicReadMSR(n); mine {
		return v, ok
	}
	return 0, quiet(n)
}

// writeMSR is WRMSR; false is #GP.
func (c *CPU) writeMSR(n uint32, v uint64) bool {
	switch n {
	case msrTSC:
		c.addTSC(v - c.tsc())
	case msrTSCAdjust:
		c.addTSC(v - c.tscAdjust)
	case msrTSCAux:
		c.tscAux = v & 0xffffffff
	case msrEFER:
		return c.writeEFER(v)
	case msrSTAR:
		c.star = v
	case msrLSTAR, msrCSTAR, msrKernelGSBase, msrFSBase, msrGSBase, msrSysenterESP, msrSysenterEIP:
		return c.writeAddressMSR(n, v)
	case msrFMASK:
		c.fmask = v & 0xffffffff
	case msrSysenterCS:
		c.sysenterCS = v & 0xffffffff
	case msrArchCap, msrMTRRCap:
		return false
	case msrMiscEnable:
	case msrPAT:
		for i := range 8 {
			if t := v >> (8 * i) & 0xff; t > 7 || t == 2 || t == 3 {
				return false
			}
		}
		c.pat = v
	case msrSpecCtrl:
		c.specCtrl = v
	case msrPredCmd:
	case msrKVMSystemTime, msrKVMSystemTimeOld:
		c.pvclock = v
		c.updatePvclock()
	case msrKVMWallClock, msrKVMWallClockOld:
		c.vm.writeWallClock(v)
	default:
		if p := c.mtrr(n); p != nil {
			*p = v
			return true
		}
		if ok, mine := c.apicWriteMSR(n, v); mine {
			return ok
		}
		return quiet(n)
	}
	return true
}

func (c *CPU) writeEFER(v uint64) bool {
	s := c.s
	const valid = eferSCE | eferLME | eferLMA | eferNXE
	if v&^valid != 0 || s.CR0&cr0PG != 0 && (v^s.EFER)&eferLME != 0 {
		return false
	}
	old := s.EFER
	s.EFER = v&^eferLMA | old&eferLMA
	if (old^s.EFER)&eferNXE != 0 {
		c.flushTLB()
	}
	return true
}

func (c *CPU) writeAddressMSR(n uint32, v uint64) bool {
	if !canonical(v) {
		return false
	}
	s := c.s
	switch n {
	case msrLSTAR:
		c.lstar = v
	case msrCSTAR:
		c.cstar = v
	case msrKernelGSBase:
		c.kernelGS = v
	case msrFSBase:
		s.Seg[vcpu.FS].Base, s.R[regSeg+vcpu.FS] = v, v
	case msrGSBase:
		s.Seg[vcpu.GS].Base, s.R[regSeg+vcpu.GS] = v, v
	case msrSysenterESP:
		c.sysenterESP = v
	case msrSysenterEIP:
		c.sysenterEIP = v
	}
	return true
}

// mtrr is the storage of a memory type register. Types have no effect here.
func (c *CPU) mtrr(n uint32) *uint64 {
	switch {
	case n >= 0x200 && n < 0x210:
		return &c.mtrrs[n-0x200]
	case n == 0x250:
		return &c.mtrrs[16]
	case n == 0x258 || n == 0x259:
		return &c.mtrrs[17+n-0x258]
	case n >= 0x268 && n < 0x270:
		return &c.mtrrs[19+n-0x268]
	case n == msrMTRRDefType:
		return &c.mtrrs[27]
	}
	return nil
}
