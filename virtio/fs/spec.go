package fs

// The FUSE wire protocol, version 7.41, as Linux has it in
// include/uapi/linux/fuse.h. Names are the header's, without FUSE_; structs
// have the header's layout (little-endian, padded to 8 bytes) and are read and
// written in place by view and its kin. Their sizes are tested against a
// second source.

// Protocol version. A driver below minMinor is refused: virtio-fs came with 7.31.
const (
	protoMajor = 7
	protoMinor = 41
	minMinor   = 31
)

// rootID is the node ID of the share's root (FUSE_ROOT_ID).
const rootID = 1

// Opcode is the operation of a request.
type opcode uint32

// Opcodes.
const (
	opLookup          opcode = 1
	opForget          opcode = 2 // no reply
	opGetattr         opcode = 3
	opSetattr         opcode = 4
	opReadlink        opcode = 5
	opSymlink         opcode = 6
	opMknod           opcode = 8
	opMkdir           opcode = 9
	opUnlink          opcode = 10
	opRmdir           opcode = 11
	opRename          opcode = 12
	opLink            opcode = 13
	opOpen            opcode = 14
	opRead            opcode = 15
	opWrite           opcode = 16
	opStatfs          opcode = 17
	opRelease         opcode = 18
	opFsync           opcode = 20
	opSetxattr        opcode = 21
	opGetxattr        opcode = 22
	opListxattr       opcode = 23
	opRemovexattr     opcode = 24
	opFlush           opcode = 25
	opInit            opcode = 26
	opOpendir         opcode = 27
	opReaddir         opcode = 28
	opReleasedir      opcode = 29
	opFsyncdir        opcode = 30
	opGetlk           opcode = 31
	opSetlk           opcode = 32
	opSetlkw          opcode = 33
	opAccess          opcode = 34
	opCreate          opcode = 35
	opInterrupt       opcode = 36
	opBmap            opcode = 37
	opDestroy         opcode = 38
	opIoctl           opcode = 39
	opPoll            opcode = 40
	opNotifyReply     opcode = 41
	opBatchForget     opcode = 42 // no reply
	opFallocate       opcode = 43
	opReaddirplus     opcode = 44
	opRename2         opcode = 45
	opLseek           opcode = 46
	opCopyFileRange   opcode = 47
	opSetupmapping    opcode = 48
	opRemovemapping   opcode = 49
	opSyncfs          opcode = 50
	opTmpfile         opcode = 51
	opStatx           opcode = 52
	opCopyFileRange64 opcode = 53
	opcodes                  = 54
)

// INIT flags. Bits from 32 on travel in flags2.
const (
	initAsyncRead        = 1 << 0
	initPosixLocks       = 1 << 1
	initAtomicOTrunc     = 1 << 3
	initBigWrites        = 1 << 5
	initDontMask         = 1 << 6
	initFlockLocks       = 1 << 10
	initAutoInvalData    = 1 << 12
	initDoReaddirplus    = 1 << 13
	initReaddirplusAuto  = 1 << 14
	initAsyncDIO         = 1 << 15
	initWritebackCache   = 1 << 16
	initParallelDirops   = 1 << 18
	initPosixACL         = 1 << 20
	initMaxPages         = 1 << 22
	initCacheSymlinks    = 1 << 23
	initMapAlignment     = 1 << 26
	initSubmounts        = 1 << 27
	initHandleKillprivV2 = 1 << 28
	initSetxattrExt      = 1 << 29
	initExt              = 1 << 30
	initHasInodeDAX      = 1 << 33
	initDirectIOMmap     = 1 << 36
	initAllowIdmap       = 1 << 40
)

// SETATTR valid bits (FATTR_).
const (
	fattrMode        = 1 << 0
	fattrUID         = 1 << 1
	fattrGID         = 1 << 2
	fattrSize        = 1 << 3
	fattrAtime       = 1 << 4
	fattrMtime       = 1 << 5
	fattrFH          = 1 << 6
	fattrAtimeNow    = 1 << 7
	fattrMtimeNow    = 1 << 8
	fattrKillSuidgid = 1 << 11
)

// Flags in other requests and replies.
const (
	fopenDirectIO  = 1 << 0
	fopenKeepCache = 1 << 1
	fopenCacheDir  = 1 << 3

	releaseFlush = 1 << 0

	lkFlock = 1 << 0

	writeCache       = 1 << 0
	writeKillSuidgid = 1 << 2

	openKillSuidgid = 1 << 0

	fsyncDatasync = 1 << 0

	attrSubmount = 1 << 0
	attrDAX      = 1 << 1

	setxattrACLKillSgid = 1 << 0

	setupmappingWrite = 1 << 0
	setupmappingRead  = 1 << 1
)

type inHeader struct {
	Len         uint32
	Opcode      opcode
	Unique      uint64
	NodeID      uint64
	UID         uint32
	GID         uint32
	PID         uint32
	TotalExtlen uint16
	_           uint16
}

type outHeader struct {
	Len    uint32
	Error  int32
	Unique uint64
}

type attr struct {
	Ino       uint64
	Size      uint64
	Blocks    uint64
	Atime     uint64
	Mtime     uint64
	Ctime     uint64
	Atimensec uint32
	Mtimensec uint32
	Ctimensec uint32
	Mode      uint32
	Nlink     uint32
	UID       uint32
	GID       uint32
	Rdev      uint32
	Blksize   uint32
	Flags     uint32
}

type entryOut struct {
	NodeID         uint64
	Generation     uint64
	EntryValid     uint64
	AttrValid      uint64
	EntryValidNsec uint32
	AttrValidNsec  uint32
	Attr           attr
}

type attrOut struct {
	AttrValid     uint64
	AttrValidNsec uint32
	_             uint32
	Attr          attr
}

type forgetIn struct{ Nlookup uint64 }

type forgetOne struct{ NodeID, Nlookup uint64 }

type batchForgetIn struct{ Count, _ uint32 }

type getattrIn struct {
	Flags uint32
	_     uint32
	FH    uint64
}

type setattrIn struct {
	Valid     uint32
	_         uint32
	FH        uint64
	Size      uint64
	LockOwner uint64
	Atime     uint64
	Mtime     uint64
	Ctime     uint64
	Atimensec uint32
	Mtimensec uint32
	Ctimensec uint32
	Mode      uint32
	_         uint32
	UID       uint32
	GID       uint32
	_         uint32
}

type mknodIn struct {
	Mode  uint32
	Rdev  uint32
	Umask uint32
	_     uint32
}

type mkdirIn struct{ Mode, Umask uint32 }

type renameIn struct{ Newdir uint64 }

type rename2In struct {
	Newdir uint64
	Flags  uint32
	_      uint32
}

type linkIn struct{ OldNodeID uint64 }

type openIn struct{ Flags, OpenFlags uint32 }

type createIn struct{ Flags, Mode, Umask, OpenFlags uint32 }

type openOut struct {
	FH        uint64
	OpenFlags uint32
	_         uint32
}

type releaseIn struct {
	FH           uint64
	Flags        uint32
	ReleaseFlags uint32
	LockOwner    uint64
}

type flushIn struct {
	FH        uint64
	_, _      uint32
	LockOwner uint64
}

type readIn struct {
	FH        uint64
	Offset    uint64
	Size      uint32
	ReadFlags uint32
	LockOwner uint64
	Flags     uint32
	_         uint32
}

type writeIn struct {
	FH         uint64
	Offset     uint64
	Size       uint32
	WriteFlags uint32
	LockOwner  uint64
	Flags      uint32
	_          uint32
}

type writeOut struct{ Size, _ uint32 }

type kstatfs struct {
	Blocks  uint64
	Bfree   uint64
	Bavail  uint64
	Files   uint64
	Ffree   uint64
	Bsize   uint32
	Namelen uint32
	Frsize  uint32
	_       [7]uint32
}

type fsyncIn struct {
	FH    uint64
	Flags uint32
	_     uint32
}

// setxattrIn with SETXATTR_EXT; without it only the first 8 bytes are sent.
type setxattrIn struct{ Size, Flags, SetxattrFlags, _ uint32 }

const compatSetxattrIn = 8

type getxattrIn struct{ Size, _ uint32 }

type getxattrOut struct{ Size, _ uint32 }

type fileLock struct {
	Start, End uint64
	Type, PID  uint32
}

type lkIn struct {
	FH    uint64
	Owner uint64
	Lk    fileLock
	Flags uint32
	_     uint32
}

type lkOut struct{ Lk fileLock }

type accessIn struct{ Mask, _ uint32 }

// initIn with INIT_EXT; without it only the first 16 bytes are sent.
type initIn struct {
	Major, Minor uint32
	MaxReadahead uint32
	Flags        uint32
	Flags2       uint32
	_            [11]uint32
}

const compatInitIn = 16

type initOut struct {
	Major, Minor        uint32
	MaxReadahead        uint32
	Flags               uint32
	MaxBackground       uint16
	CongestionThreshold uint16
	MaxWrite            uint32
	TimeGran            uint32
	MaxPages            uint16
	MapAlignment        uint16
	Flags2              uint32
	MaxStackDepth       uint32
	_                   [6]uint32
}

type interruptIn struct{ Unique uint64 }

type fallocateIn struct {
	FH     uint64
	Offset uint64
	Length uint64
	Mode   uint32
	_      uint32
}

type lseekIn struct {
	FH     uint64
	Offset uint64
	Whence uint32
	_      uint32
}

type lseekOut struct{ Offset uint64 }

type copyFileRangeIn struct {
	FHIn, OffIn        uint64
	NodeIDOut, FHOut   uint64
	OffOut, Len, Flags uint64
}

type copyFileRangeOut struct{ BytesCopied uint64 }

type setupmappingIn struct {
	FH      uint64
	FOffset uint64
	Len     uint64
	Flags   uint64
	MOffset uint64
}

type removemappingIn struct{ Count uint32 }

type removemappingOne struct{ MOffset, Len uint64 }

type sxTime struct {
	Sec  int64
	Nsec uint32
	_    int32
}

type statxBody struct {
	Mask           uint32
	Blksize        uint32
	Attributes     uint64
	Nlink          uint32
	UID            uint32
	GID            uint32
	Mode           uint16
	_              uint16
	Ino            uint64
	Size           uint64
	Blocks         uint64
	AttributesMask uint64
	Atime          sxTime
	Btime          sxTime
	Ctime          sxTime
	Mtime          sxTime
	RdevMajor      uint32
	RdevMinor      uint32
	DevMajor       uint32
	DevMinor       uint32
	_              [14]uint64
}

type statxIn struct {
	GetattrFlags uint32
	_            uint32
	FH           uint64
	SxFlags      uint32
	SxMask       uint32
}

type statxOut struct {
	AttrValid     uint64
	AttrValidNsec uint32
	Flags         uint32
	_             [2]uint64
	Stat          statxBody
}

// dirent is followed by its name, padded to 8 bytes.
type dirent struct {
	Ino     uint64
	Off     uint64
	Namelen uint32
	Type    uint32
}

// Sizes of the fixed parts in bytes.
const (
	inHeaderSize  = 40
	outHeaderSize = 16
	entryOutSize  = 128
	direntSize    = 24
	writeInSize   = 40
)

// virtio 1.2 §5.11.4: the configuration space is tag[36] and
// le32 num_request_queues; the tag is padded with NUL and not terminated when
// it has 36 bytes.
const (
	tagLen     = 36
	configSize = tagLen + 4
)

// Queues (§5.11.2): hiprio first, then the request queues (VIRTIO_FS_F_NOTIFICATION
// is not offered, so there is no notification queue between them).
const (
	hiprioQueue = 0
	hiprioSize  = 128
	requestSize = 1024
	// maxQueues bounds num_request_queues.
	maxQueues = 64
)

// Limits that INIT announces.
const (
	pageSize = 4096
	maxPages = 256 // 1 MiB a request
	maxWrite = maxPages * pageSize
	// daxShift is log2 of the granularity of DAX mappings: Linux maps
	// ranges of 2 MiB (FUSE_DAX_SHIFT). Asking for this alignment bounds
	// the number of mappings a guest can make.
	daxShift = 21
	daxRange = 1 << daxShift
)
