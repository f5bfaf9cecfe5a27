package fs

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// localTypes are the file systems of Linux that answer by themselves: what they
// wait for, if anything, is a disk of this host. All others may wait for a
// network or a process, without end. An overlay counts as one of its upper layer.
// The numbers are those of statfs(2).
var localTypes = map[string]int64{
	"bcachefs": 0xca451a4e, "binfmt_misc": unix.BINFMTFS_MAGIC, "bpf": unix.BPF_FS_MAGIC, "btrfs": unix.BTRFS_SUPER_MAGIC, "cgroup": unix.CGROUP_SUPER_MAGIC,
	"cgroup2": unix.CGROUP2_SUPER_MAGIC, "debugfs": unix.DEBUGFS_MAGIC, "devpts": unix.DEVPTS_SUPER_MAGIC, "devtmpfs": unix.TMPFS_MAGIC,
	"efivarfs": unix.EFIVARFS_MAGIC, "erofs": unix.EROFS_SUPER_MAGIC_V1, "exfat": unix.EXFAT_SUPER_MAGIC, "ext2": unix.EXT2_SUPER_MAGIC,
	"ext3": unix.EXT3_SUPER_MAGIC, "ext4": unix.EXT4_SUPER_MAGIC, "f2fs": unix.F2FS_SUPER_MAGIC, "hugetlbfs": unix.HUGETLBFS_MAGIC,
	"iso9660": unix.ISOFS_SUPER_MAGIC, "mqueue": 0x19800202, "nsfs": unix.NSFS_MAGIC, "overlay": unix.OVERLAYFS_SUPER_MAGIC, "proc": unix.PROC_SUPER_MAGIC,
	"pstore": unix.PSTOREFS_MAGIC, "ramfs": unix.RAMFS_MAGIC, "securityfs": unix.SECURITYFS_MAGIC, "selinuxfs": unix.SELINUX_MAGIC,
	"squashfs": unix.SQUASHFS_MAGIC, "sysfs": unix.SYSFS_MAGIC, "tmpfs": unix.TMPFS_MAGIC, "tracefs": unix.TRACEFS_MAGIC, "udf": unix.UDF_SUPER_MAGIC,
	"vfat": unix.MSDOS_SUPER_MAGIC, "xfs": unix.XFS_SUPER_MAGIC, "zfs": 0x2fc12fc1,
}

// localMagics are localTypes' numbers.
var localMagics = func() map[int64]bool {
	m := map[int64]bool{}
	for _, v := range localTypes {
		m[v] = true
	}
	return m
}()

// localFD reports whether fd is on a local file system.
func localFD(fd int) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && localMagics[int64(st.Type)]
}

// findLocal decides whether the share and all that is mounted below it now are
// local, so that a CPU's thread may serve requests. It asks no file system but
// the share's own.
func (d *Device) findLocal() {
	fd := d.root.fd
	if fd < 0 {
		fd = d.host.dir
	}
	if !localFD(fd) {
		return
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return
	}
	path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	d.local.Store(err == nil && !remoteBelow(table, d.root.key.mnt, path))
}

// remoteBelow reports whether a file system that is not local is mounted below
// path of the mount with that ID. A mount that is not in the table, as an
// overlay that is mounted nowhere, has nothing below it. The table's lines are
// those of proc_pid_mountinfo(5).
func remoteBelow(table []byte, mount uint64, path string) bool {
	id := strconv.FormatUint(mount, 10)
	known, remote := false, false
	for line := range bytes.Lines(table) {
		before, after, ok := strings.Cut(string(line), " - ")
		f := strings.Fields(before)
		if !ok || len(f) < 5 {
			continue
		}
		kind, _, _ := strings.Cut(after, " ")
		known = known || f[0] == id
		_, local := localTypes[kind]
		if rel, err := filepath.Rel(path, unescape(f[4])); !local && err == nil && filepath.IsLocal(rel) {
			remote = true
		}
	}
	return known && remote
}

// unescape resolves the octal escapes of a path in mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// noteMount looks at an inode of another mount than the share's: file systems
// may be mounted while the guest runs.
func (d *Device) noteMount(i *inode) {
	if d.root != nil && i.key.mnt != d.root.key.mnt && d.local.Load() && !localFD(i.fd) {
		d.local.Store(false)
	}
}
