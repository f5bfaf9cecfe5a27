package fs

import (
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Structs with the kernel header's name and, where go-fuse exports it, its own.
// go-fuse's requests begin with the request header.
var wireTypes = []struct {
	c         string
	ours      any
	second    any
	hasHeader bool
}{
	{"in_header", inHeader{}, fuse.InHeader{}, false},
	{"out_header", outHeader{}, fuse.OutHeader{}, false},
	{"attr", attr{}, fuse.Attr{}, false},
	{"entry_out", entryOut{}, fuse.EntryOut{}, false},
	{"attr_out", attrOut{}, fuse.AttrOut{}, false},
	{"forget_in", forgetIn{}, fuse.ForgetIn{}, true},
	{"forget_one", forgetOne{}, nil, false},
	{"batch_forget_in", batchForgetIn{}, nil, false},
	{"getattr_in", getattrIn{}, fuse.GetAttrIn{}, true},
	{"setattr_in", setattrIn{}, fuse.SetAttrIn{}, true},
	{"mknod_in", mknodIn{}, fuse.MknodIn{}, true},
	{"mkdir_in", mkdirIn{}, fuse.MkdirIn{}, true},
	{"rename_in", renameIn{}, nil, false},
	{"rename2_in", rename2In{}, fuse.RenameIn{}, true},
	{"link_in", linkIn{}, fuse.LinkIn{}, true},
	{"open_in", openIn{}, fuse.OpenIn{}, true},
	{"create_in", createIn{}, fuse.CreateIn{}, true},
	{"open_out", openOut{}, fuse.OpenOut{}, false},
	{"release_in", releaseIn{}, fuse.ReleaseIn{}, true},
	{"flush_in", flushIn{}, fuse.FlushIn{}, true},
	{"read_in", readIn{}, fuse.ReadIn{}, true},
	{"write_in", writeIn{}, fuse.WriteIn{}, true},
	{"write_out", writeOut{}, fuse.WriteOut{}, false},
	{"kstatfs", kstatfs{}, fuse.StatfsOut{}, false},
	{"fsync_in", fsyncIn{}, fuse.FsyncIn{}, true},
	{"setxattr_in", setxattrIn{}, nil, false},
	{"getxattr_in", getxattrIn{}, nil, false},
	{"getxattr_out", getxattrOut{}, fuse.GetXAttrOut{}, false},
	{"file_lock", fileLock{}, fuse.FileLock{}, false},
	{"lk_in", lkIn{}, fuse.LkIn{}, true},
	{"lk_out", lkOut{}, fuse.LkOut{}, false},
	{"access_in", accessIn{}, fuse.AccessIn{}, true},
	{"init_in", initIn{}, fuse.InitIn{}, true},
	{"init_out", initOut{}, fuse.InitOut{}, false},
	{"interrupt_in", interruptIn{}, fuse.InterruptIn{}, true},
	{"fallocate_in", fallocateIn{}, fuse.FallocateIn{}, true},
	{"lseek_in", lseekIn{}, fuse.LseekIn{}, true},
	{"lseek_out", lseekOut{}, fuse.LseekOut{}, false},
	{"copy_file_range_in", copyFileRangeIn{}, fuse.CopyFileRangeIn{}, true},
	{"copy_file_range_out", copyFileRangeOut{}, fuse.CopyFileRangeOut{}, false},
	{"setupmapping_in", setupmappingIn{}, nil, false},
	{"removemapping_in", removemappingIn{}, nil, false},
	{"removemapping_one", removemappingOne{}, nil, false},
	{"statx", statxBody{}, fuse.Statx{}, false},
	{"statx_in", statxIn{}, fuse.StatxIn{}, true},
	{"statx_out", statxOut{}, fuse.StatxOut{}, false},
	{"dirent", dirent{}, nil, false},
}

func TestWireSizesAgainstGoFuse(t *testing.T) {
	for _, w := range wireTypes {
		if w.second == nil {
			continue
		}
		want := reflect.TypeOf(w.second).Size()
		if w.hasHeader {
			want -= inHeaderSize
		}
		if got := reflect.TypeOf(w.ours).Size(); got != want {
			t.Errorf("%s has %d bytes, in go-fuse %d", w.c, got, want)
		}
	}
}

// kernelHeader is this machine's copy of the protocol, of any version from 7.31.
func kernelHeader(t *testing.T) string {
	b, err := os.ReadFile("/usr/include/linux/fuse.h")
	if err != nil {
		t.Skip("no kernel headers: ", err)
	}
	return string(b)
}

func TestWireLayoutAgainstKernelHeader(t *testing.T) {
	h := kernelHeader(t)
	defs := map[string]string{}
	for _, m := range regexp.MustCompile(`(?s)struct fuse_(\w+) \{(.*?)\n\};`).FindAllStringSubmatch(h, -1) {
		defs[m[1]] = regexp.MustCompile(`(?s)/\*.*?\*/`).ReplaceAllString(m[2], "")
	}
	for _, w := range wireTypes {
		def, ok := defs[w.c]
		if !ok {
			continue // newer than the header
		}
		got := offsets(reflect.TypeOf(w.ours), 0, nil)
		want := cOffsets(t, defs, def, 0, nil)
		// Reserved words may be arrays on one side.
		if a, b := scalars(got), scalars(want); a != b {
			t.Errorf("%s has its fields at %s, in the header at %s", w.c, a, b)
		}
	}
}

// scalars lists where fields begin.
func scalars(o []uintptr) string {
	var b strings.Builder
	for _, v := range o {
		b.WriteString(strconv.Itoa(int(v)) + " ")
	}
	return b.String()
}

func offsets(t reflect.Type, at uintptr, to []uintptr) []uintptr {
	switch t.Kind() {
	case reflect.Struct:
		for i := range t.NumField() {
			to = offsets(t.Field(i).Type, at+t.Field(i).Offset, to)
		}
		return to
	case reflect.Array:
		for i := range t.Len() {
			to = offsets(t.Elem(), at+uintptr(i)*t.Elem().Size(), to)
		}
		return to
	}
	return append(to, at)
}

var cField = regexp.MustCompile(`(?m)^\s*(u?int(\d+)_t|struct fuse_(\w+))\s+(\w+)(\[(\d+)\])?;`)

// cOffsets is offsets for a C struct that has no padding of its own.
func cOffsets(t *testing.T, defs map[string]string, def string, at uintptr, to []uintptr) []uintptr {
	for _, m := range cField.FindAllStringSubmatch(def, -1) {
		count := 1
		if m[6] != "" {
			count, _ = strconv.Atoi(m[6])
		}
		for range count {
			if m[3] != "" {
				inner := cOffsets(t, defs, defs[m[3]], at, nil)
				to = append(to, inner...)
				at = inner[len(inner)-1] + 4
				at = (at + 7) &^ 7
				continue
			}
			bits, _ := strconv.Atoi(m[2])
			to = append(to, at)
			at += uintptr(bits / 8)
		}
	}
	return to
}

func TestConstantsAgainstKernelHeader(t *testing.T) {
	h := kernelHeader(t)
	value := func(name string) (uint64, bool) {
		m := regexp.MustCompile(`(?m)^(?:#define\s+|\s*)` + name + `\s+(?:=\s*)?\(?(\d+)(?:u?ll|ULL)?(?:\s*<<\s*(\d+))?`).FindStringSubmatch(h)
		if m == nil {
			return 0, false
		}
		v, _ := strconv.ParseUint(m[1], 10, 64)
		if m[2] != "" {
			s, _ := strconv.Atoi(m[2])
			v <<= s
		}
		return v, true
	}
	for name, ours := range map[string]uint64{
		"FUSE_LOOKUP": uint64(opLookup), "FUSE_FORGET": uint64(opForget), "FUSE_GETATTR": uint64(opGetattr),
		"FUSE_SETATTR": uint64(opSetattr), "FUSE_READLINK": uint64(opReadlink), "FUSE_SYMLINK": uint64(opSymlink),
		"FUSE_MKNOD": uint64(opMknod), "FUSE_MKDIR": uint64(opMkdir), "FUSE_UNLINK": uint64(opUnlink), "FUSE_RMDIR": uint64(opRmdir),
		"FUSE_RENAME": uint64(opRename), "FUSE_LINK": uint64(opLink), "FUSE_OPEN": uint64(opOpen), "FUSE_READ": uint64(opRead),
		"FUSE_WRITE": uint64(opWrite), "FUSE_STATFS": uint64(opStatfs), "FUSE_RELEASE": uint64(opRelease), "FUSE_FSYNC": uint64(opFsync),
		"FUSE_SETXATTR": uint64(opSetxattr), "FUSE_GETXATTR": uint64(opGetxattr), "FUSE_LISTXATTR": uint64(opListxattr),
		"FUSE_REMOVEXATTR": uint64(opRemovexattr), "FUSE_FLUSH": uint64(opFlush), "FUSE_INIT": uint64(opInit),
		"FUSE_OPENDIR": uint64(opOpendir), "FUSE_READDIR": uint64(opReaddir), "FUSE_RELEASEDIR": uint64(opReleasedir),
		"FUSE_FSYNCDIR": uint64(opFsyncdir), "FUSE_GETLK": uint64(opGetlk), "FUSE_SETLK": uint64(opSetlk), "FUSE_SETLKW": uint64(opSetlkw),
		"FUSE_ACCESS": uint64(opAccess), "FUSE_CREATE": uint64(opCreate), "FUSE_INTERRUPT": uint64(opInterrupt), "FUSE_BMAP": uint64(opBmap),
		"FUSE_DESTROY": uint64(opDestroy), "FUSE_IOCTL": uint64(opIoctl), "FUSE_POLL": uint64(opPoll), "FUSE_NOTIFY_REPLY": uint64(opNotifyReply),
		"FUSE_BATCH_FORGET": uint64(opBatchForget), "FUSE_FALLOCATE": uint64(opFallocate), "FUSE_READDIRPLUS": uint64(opReaddirplus),
		"FUSE_RENAME2": uint64(opRename2), "FUSE_LSEEK": uint64(opLseek), "FUSE_COPY_FILE_RANGE": uint64(opCopyFileRange),
		"FUSE_SETUPMAPPING": uint64(opSetupmapping), "FUSE_REMOVEMAPPING": uint64(opRemovemapping), "FUSE_SYNCFS": uint64(opSyncfs),
		"FUSE_TMPFILE": uint64(opTmpfile), "FUSE_STATX": uint64(opStatx), "FUSE_COPY_FILE_RANGE_64": uint64(opCopyFileRange64),
		"FUSE_ASYNC_READ": initAsyncRead, "FUSE_POSIX_LOCKS": initPosixLocks, "FUSE_ATOMIC_O_TRUNC": initAtomicOTrunc,
		"FUSE_BIG_WRITES": initBigWrites, "FUSE_DONT_MASK": initDontMask, "FUSE_FLOCK_LOCKS": initFlockLocks,
		"FUSE_AUTO_INVAL_DATA": initAutoInvalData, "FUSE_DO_READDIRPLUS": initDoReaddirplus, "FUSE_READDIRPLUS_AUTO": initReaddirplusAuto,
		"FUSE_ASYNC_DIO": initAsyncDIO, "FUSE_WRITEBACK_CACHE": initWritebackCache, "FUSE_PARALLEL_DIROPS": initParallelDirops,
		"FUSE_POSIX_ACL": initPosixACL, "FUSE_MAX_PAGES": initMaxPages, "FUSE_CACHE_SYMLINKS": initCacheSymlinks,
		"FUSE_MAP_ALIGNMENT": initMapAlignment, "FUSE_SUBMOUNTS": initSubmounts,
		"FUSE_HANDLE_KILLPRIV_V2": initHandleKillprivV2, "FUSE_SETXATTR_EXT": initSetxattrExt, "FUSE_INIT_EXT": initExt,
		"FUSE_HAS_INODE_DAX": initHasInodeDAX, "FUSE_DIRECT_IO_ALLOW_MMAP": initDirectIOMmap, "FUSE_ALLOW_IDMAP": initAllowIdmap,
		"FATTR_MODE": fattrMode, "FATTR_UID": fattrUID, "FATTR_GID": fattrGID, "FATTR_SIZE": fattrSize, "FATTR_ATIME": fattrAtime,
		"FATTR_MTIME": fattrMtime, "FATTR_FH": fattrFH, "FATTR_ATIME_NOW": fattrAtimeNow, "FATTR_MTIME_NOW": fattrMtimeNow,
		"FATTR_KILL_SUIDGID": fattrKillSuidgid, "FOPEN_DIRECT_IO": fopenDirectIO, "FOPEN_KEEP_CACHE": fopenKeepCache,
		"FOPEN_CACHE_DIR": fopenCacheDir, "FUSE_RELEASE_FLUSH": releaseFlush, "FUSE_LK_FLOCK": lkFlock, "FUSE_WRITE_CACHE": writeCache,
		"FUSE_WRITE_KILL_SUIDGID": writeKillSuidgid, "FUSE_OPEN_KILL_SUIDGID": openKillSuidgid, "FUSE_FSYNC_FDATASYNC": fsyncDatasync,
		"FUSE_ATTR_SUBMOUNT": attrSubmount, "FUSE_ATTR_DAX": attrDAX, "FUSE_SETXATTR_ACL_KILL_SGID": setxattrACLKillSgid,
		"FUSE_SETUPMAPPING_FLAG_WRITE": setupmappingWrite, "FUSE_SETUPMAPPING_FLAG_READ": setupmappingRead,
		"FUSE_ROOT_ID": rootID, "FUSE_KERNEL_VERSION": protoMajor,
	} {
		if v, ok := value(name); ok && v != ours {
			t.Errorf("%s is %d here and %d in the header", name, ours, v)
		}
	}
	if _, ok := value("FUSE_LOOKUP"); !ok {
		t.Error("the header was not understood")
	}
}
