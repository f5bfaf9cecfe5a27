package vhost

// Structures of linux/vhost.h and linux/vhost_types.h.

// vringState is struct vhost_vring_state.
type vringState struct{ index, num uint32 }

// vringFile is struct vhost_vring_file; -1 takes the descriptor away.
type vringFile struct {
	index uint32
	fd    int32
}

// vringAddr is struct vhost_vring_addr. The addresses are this process's. flags
// and log_guest_addr stay 0: nobody logs.
type vringAddr struct {
	index, _          uint32
	desc, used, avail uint64
	_                 uint64
}

// memoryRegion is struct vhost_memory_region.
type memoryRegion struct{ guestPhysAddr, memorySize, userspaceAddr, flagsPadding uint64 }

// maxRegions is the kernel's default limit (module parameter max_mem_regions).
const maxRegions = 64

// memoryTable is struct vhost_memory with room for all regions.
type memoryTable struct {
	nregions, padding uint32
	regions           [maxRegions]memoryRegion
}

// Requests. The numbers are _IO, _IOW and _IOR of linux/vhost.h with type 0xAF.
const (
	VHOST_GET_FEATURES        = 0x8008af00
	VHOST_SET_FEATURES        = 0x4008af00
	VHOST_SET_OWNER           = 0x0000af01
	VHOST_SET_MEM_TABLE       = 0x4008af03
	VHOST_SET_VRING_NUM       = 0x4008af10
	VHOST_SET_VRING_ADDR      = 0x4028af11
	VHOST_SET_VRING_BASE      = 0x4008af12
	VHOST_SET_VRING_KICK      = 0x4008af20
	VHOST_SET_VRING_CALL      = 0x4008af21
	VHOST_NET_SET_BACKEND     = 0x4008af30
	VHOST_VSOCK_SET_GUEST_CID = 0x4008af60
	VHOST_VSOCK_SET_RUNNING   = 0x4004af61
)

// noFD unbinds (VHOST_FILE_UNBIND).
const noFD = -1
