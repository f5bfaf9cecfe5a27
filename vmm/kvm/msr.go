package kvm

// MSRs (Intel SDM vol. 4, table 2-2).
const (
	msrMiscEnable  = 0x1a0
	msrMTRRDefType = 0x2ff
)

// bootMSRs is what firmware would leave behind. Fast string operations: Linux
// drops ERMS on Intel CPUs without the bit; the two others say that BTS and
// PEBS are not there. MTRRs: enabled, all memory write-back; Linux has no
// PAT without them.
var bootMSRs = [...]kvmMSREntry{
	{index: msrMiscEnable, data: 1<<0 | 1<<11 | 1<<12},
	{index: msrMTRRDefType, data: 1<<11 | 6},
}

// setBootMSRs sets bootMSRs one by one: KVM stops at the first that it refuses,
// and no guest depends on any.
func (c *VCPU) setBootMSRs() {
	for _, e := range bootMSRs {
		m := kvmMSRs1{nmsrs: 1, entry: e}
		_, _ = ioctlPtr(c.fd, KVM_SET_MSRS, &m)
	}
}
