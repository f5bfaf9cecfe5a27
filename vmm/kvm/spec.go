package kvm

//lint:file-ignore U1000 the kernel's structs are here whole, whether or not a field is used

// Ioctls of /dev/kvm (KVM API §4, "system ioctl").
const (
	KVM_GET_API_VERSION     = 0xae00
	KVM_CREATE_VM           = 0xae01
	KVM_CHECK_EXTENSION     = 0xae03
	KVM_GET_VCPU_MMAP_SIZE  = 0xae04
	KVM_GET_SUPPORTED_CPUID = 0xc008ae05
)

// Ioctls of a VM (KVM API §4, "vm ioctl").
const (
	KVM_CREATE_VCPU            = 0xae41
	KVM_SET_USER_MEMORY_REGION = 0x4020ae46
	KVM_SET_TSS_ADDR           = 0xae47
	KVM_SET_IDENTITY_MAP_ADDR  = 0x4008ae48
	KVM_CREATE_IRQCHIP         = 0xae60
	KVM_IRQ_LINE               = 0x4008ae61
	KVM_SET_GSI_ROUTING        = 0x4008ae6a
	KVM_IRQFD                  = 0x4020ae76
	KVM_CREATE_PIT2            = 0x4040ae77
	KVM_IOEVENTFD              = 0x4040ae79
	KVM_SET_CLOCK              = 0x4030ae7b
	KVM_GET_CLOCK              = 0x8030ae7c
	KVM_ENABLE_CAP             = 0x4068aea3
	KVM_SIGNAL_MSI             = 0x4020aea5
)

// Ioctls of a CPU (KVM API §4, "vcpu ioctl").
const (
	KVM_RUN             = 0xae80
	KVM_GET_REGS        = 0x8090ae81
	KVM_SET_REGS        = 0x4090ae82
	KVM_GET_SREGS       = 0x8138ae83
	KVM_SET_SREGS       = 0x4138ae84
	KVM_TRANSLATE       = 0xc018ae85
	KVM_SET_MSRS        = 0x4008ae89
	KVM_GET_FPU         = 0x81a0ae8c
	KVM_SET_FPU         = 0x41a0ae8d
	KVM_SET_CPUID2      = 0x4008ae90
	KVM_SET_GUEST_DEBUG = 0x4048ae9b
	KVM_GET_TSC_KHZ     = 0xaea3
	KVM_KVMCLOCK_CTRL   = 0xaead
	KVM_SMI             = 0xaeb7
	KVM_SET_DEVICE_ATTR = 0x4018aee1
	KVM_GET_DEVICE_ATTR = 0x4018aee2
	KVM_GET_STATS_FD    = 0xaece
)

// Capabilities of KVM_CHECK_EXTENSION and KVM_ENABLE_CAP.
const (
	KVM_CAP_IRQCHIP              = 0
	KVM_CAP_USER_MEMORY          = 3
	KVM_CAP_EXT_CPUID            = 7
	KVM_CAP_IRQ_ROUTING          = 25
	KVM_CAP_IRQFD                = 32
	KVM_CAP_PIT2                 = 33
	KVM_CAP_IOEVENTFD            = 36
	KVM_CAP_ADJUST_CLOCK         = 39
	KVM_CAP_MAX_VCPUS            = 66
	KVM_CAP_TSC_DEADLINE_TIMER   = 72
	KVM_CAP_SIGNAL_MSI           = 77
	KVM_CAP_READONLY_MEM         = 81
	KVM_CAP_X86_SMM              = 117
	KVM_CAP_MULTI_ADDRESS_SPACE  = 118
	KVM_CAP_SPLIT_IRQCHIP        = 121
	KVM_CAP_IOEVENTFD_ANY_LENGTH = 122
	KVM_CAP_IMMEDIATE_EXIT       = 136
	KVM_CAP_PMU_CAPABILITY       = 212
)

// Reasons in kvm_run.exit_reason (KVM API §5).
const (
	KVM_EXIT_UNKNOWN        = 0
	KVM_EXIT_IO             = 2
	KVM_EXIT_DEBUG          = 4
	KVM_EXIT_HLT            = 5
	KVM_EXIT_MMIO           = 6
	KVM_EXIT_SHUTDOWN       = 8
	KVM_EXIT_FAIL_ENTRY     = 9
	KVM_EXIT_INTR           = 10
	KVM_EXIT_INTERNAL_ERROR = 17
	KVM_EXIT_SYSTEM_EVENT   = 24
	KVM_EXIT_IOAPIC_EOI     = 26
	KVM_EXIT_MEMORY_FAULT   = 39 // since Linux 6.8
)

// Kinds of KVM_EXIT_IO, KVM_EXIT_SYSTEM_EVENT and KVM_EXIT_INTERNAL_ERROR.
const (
	KVM_EXIT_IO_IN  = 0
	KVM_EXIT_IO_OUT = 1

	KVM_SYSTEM_EVENT_SHUTDOWN = 1
	KVM_SYSTEM_EVENT_RESET    = 2
	KVM_SYSTEM_EVENT_CRASH    = 3

	KVM_INTERNAL_ERROR_EMULATION              = 1
	KVM_INTERNAL_ERROR_SIMUL_EX               = 2
	KVM_INTERNAL_ERROR_DELIVERY_EV            = 3
	KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON = 4

	KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES = 1 << 0
)

// Flags and kinds of the structures below.
const (
	KVM_MEM_READONLY                = 1 << 1
	KVM_RUN_X86_SMM                 = 1 << 0 // in kvm_run.flags
	KVM_PIT_SPEAKER_DUMMY           = 1 << 0
	KVM_IRQFD_FLAG_DEASSIGN         = 1 << 0
	KVM_IOEVENTFD_FLAG_DEASSIGN     = 1 << 2
	KVM_CPUID_FLAG_SIGNIFCANT_INDEX = 1 << 0
	KVM_CLOCK_HOST_TSC              = 1 << 3
	KVM_PMU_CAP_DISABLE             = 1 << 0
	KVM_VCPU_TSC_CTRL               = 0
	KVM_VCPU_TSC_OFFSET             = 0

	KVM_IRQ_ROUTING_IRQCHIP = 1
	KVM_IRQ_ROUTING_MSI     = 2

	KVM_IRQCHIP_PIC_MASTER = 0
	KVM_IRQCHIP_PIC_SLAVE  = 1
	KVM_IRQCHIP_IOAPIC     = 2
)

// Bits of kvm_guest_debug.control (KVM API §4.87).
const (
	KVM_GUESTDBG_ENABLE     = 1 << 0
	KVM_GUESTDBG_SINGLESTEP = 1 << 1
	KVM_GUESTDBG_USE_SW_BP  = 1 << 16
	KVM_GUESTDBG_USE_HW_BP  = 1 << 17
	KVM_GUESTDBG_INJECT_BP  = 1 << 19
	KVM_GUESTDBG_BLOCKIRQ   = 1 << 20 // since Linux 5.15
)

// kvmAPIVersion is the only version there ever was since Linux 2.6.22.
const kvmAPIVersion = 12

// kvmRegs is struct kvm_regs.
type kvmRegs struct {
	rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp uint64
	r8, r9, r10, r11, r12, r13, r14, r15   uint64
	rip, rflags                            uint64
}

// kvmSegment is struct kvm_segment.
type kvmSegment struct {
	base                           uint64
	limit                          uint32
	selector                       uint16
	typ, present, dpl, db, s, l, g uint8
	avl, unusable, padding         uint8
}

// kvmDTable is struct kvm_dtable.
type kvmDTable struct {
	base    uint64
	limit   uint16
	padding [3]uint16
}

// kvmSregs is struct kvm_sregs.
type kvmSregs struct {
	cs, ds, es, fs, gs, ss  kvmSegment
	tr, ldt                 kvmSegment
	gdt, idt                kvmDTable
	cr0, cr2, cr3, cr4, cr8 uint64
	efer                    uint64
	apicBase                uint64
	interruptBitmap         [4]uint64
}

// kvmUserspaceMemoryRegion is struct kvm_userspace_memory_region.
type kvmUserspaceMemoryRegion struct {
	slot, flags   uint32
	guestPhysAddr uint64
	memorySize    uint64
	userspaceAddr uint64
}

// kvmPITConfig is struct kvm_pit_config.
type kvmPITConfig struct {
	flags uint32
	pad   [15]uint32
}

// kvmIRQLevel is struct kvm_irq_level.
type kvmIRQLevel struct {
	irq, level uint32
}

// kvmMSI is struct kvm_msi.
type kvmMSI struct {
	addressLo, addressHi, data uint32
	flags, devid               uint32
	pad                        [12]uint8
}

// kvmIRQFD is struct kvm_irqfd.
type kvmIRQFD struct {
	fd, gsi, flags, resamplefd uint32
	pad                        [16]uint8
}

// kvmIOEventFD is struct kvm_ioeventfd.
type kvmIOEventFD struct {
	datamatch  uint64
	addr       uint64
	len        uint32
	fd         int32
	flags, pad uint32
	pad2       [32]uint8
}

// kvmIRQRoutingEntry is struct kvm_irq_routing_entry; u is its union of eight
// words: irqchip and pin, or the MSI's address (low, high) and data.
type kvmIRQRoutingEntry struct {
	gsi, typ, flags, pad uint32
	u                    [8]uint32
}

// kvmCPUIDEntry2 is struct kvm_cpuid_entry2.
type kvmCPUIDEntry2 struct {
	function, index, flags uint32
	eax, ebx, ecx, edx     uint32
	padding                [3]uint32
}

// maxCPUIDEntries is KVM_MAX_CPUID_ENTRIES of arch/x86/kvm.
const maxCPUIDEntries = 256

// kvmCPUID2 is struct kvm_cpuid2 with room for all that KVM accepts.
type kvmCPUID2 struct {
	nent, padding uint32
	entries       [maxCPUIDEntries]kvmCPUIDEntry2
}

// kvmMSREntry is struct kvm_msr_entry.
type kvmMSREntry struct {
	index, reserved uint32
	data            uint64
}

// kvmMSRs1 is struct kvm_msrs with one entry.
type kvmMSRs1 struct {
	nmsrs, pad uint32
	entry      kvmMSREntry
}

// kvmClockData is struct kvm_clock_data of Linux 5.16; before that realtime and
// hostTSC were padding, and flags lacks KVM_CLOCK_HOST_TSC.
type kvmClockData struct {
	clock       uint64
	flags, pad0 uint32
	realtime    uint64
	hostTSC     uint64
	pad         [4]uint32
}

// kvmDeviceAttr is struct kvm_device_attr. addr points to the value.
type kvmDeviceAttr struct {
	flags, group uint32
	attr         uint64
	addr         uint64
}

// kvmEnableCap is struct kvm_enable_cap.
type kvmEnableCap struct {
	cap, flags uint32
	args       [4]uint64
	pad        [64]uint8
}

// kvmTranslation is struct kvm_translation.
type kvmTranslation struct {
	linearAddress             uint64
	physicalAddress           uint64
	valid, writeable, usermod uint8
	pad                       [5]uint8
}

// kvmGuestDebug is struct kvm_guest_debug.
type kvmGuestDebug struct {
	control, pad uint32
	debugreg     [8]uint64
}

// kvmFPU is struct kvm_fpu.
type kvmFPU struct {
	fpr            [8][16]uint8
	fcw, fsw       uint16
	ftwx, pad1     uint8
	lastOpcode     uint16
	lastIP, lastDP uint64
	xmm            [16][16]uint8
	mxcsr, pad2    uint32
}

// kvmRun is the head of struct kvm_run; exit is its union.
type kvmRun struct {
	// control holds request_interrupt_window in bits 0-7, always 0 here, and
	// immediate_exit in bits 8-15. It is only accessed atomically.
	control    uint32
	padding1   uint32
	exitReason uint32
	irqReady   uint8 // ready_for_interrupt_injection
	ifFlag     uint8
	flags      uint16
	cr8        uint64
	apicBase   uint64
	exit       [256]uint8
}

// immediateExit is immediate_exit = 1 in kvmRun.control.
const immediateExit = 1 << 8

// Members of kvm_run's union.
type (
	exitIO struct {
		direction  uint8
		size       uint8 // bytes
		port       uint16
		count      uint32
		dataOffset uint64 // from the start of kvm_run
	}
	exitMMIO struct {
		physAddr uint64
		data     [8]uint8
		len      uint32
		isWrite  uint8
	}
	exitInternal struct {
		suberror, ndata uint32
		data            [16]uint64
	}
	exitEmulation struct {
		suberror, ndata uint32
		flags           uint64
		insnSize        uint8
		insnBytes       [15]uint8
	}
	exitFailEntry struct {
		hardwareReason uint64
		cpu            uint32
	}
	exitSystemEvent struct {
		typ uint32
	}
	exitDebug struct { // kvm_debug_exit_arch
		exception, pad uint32
		pc, dr6, dr7   uint64
	}
	exitEOI struct {
		vector uint8
	}
	exitMemoryFault struct {
		flags, gpa, size uint64
	}
)
