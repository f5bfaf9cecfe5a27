package fs

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Ephemeral returns a directory for Config.Root that shows what is below path,
// keeps all changes to itself, and loses them when the last descriptor into it
// is closed, however the process ends. It is an overlayfs of the kernel over
// the directory, with its upper layer in a tmpfs; neither is mounted anywhere
// (fsmount(2)), so nothing is left behind and nobody else sees it. Changes take
// memory, at most half of the host's. It needs CAP_SYS_ADMIN and Linux 5.2.
//
// A share of it must have no DAX window: overlayfs does not keep mappings made
// before a file's first change coherent with it.
func Ephemeral(path string) (*os.File, error) {
	lower, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer lower.Close()
	upper, err := upperLayer(lower)
	if err != nil {
		return nil, ephemeralError(path, err)
	}
	defer func() { _ = unix.Close(upper) }()
	root, err := overlay(int(lower.Fd()), upper)
	if err != nil {
		return nil, ephemeralError(path, err)
	}
	return os.NewFile(uintptr(root), path), nil
}

func ephemeralError(path string, err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("an ephemeral copy of directory %s needs root", path)
	}
	return fmt.Errorf("make an ephemeral copy of %s with overlayfs: %w", path, err)
}

// fsParam is a parameter of a new file system; without a value it is a flag.
type fsParam struct{ key, value string }

// newMount makes a file system that is mounted nowhere and returns its root.
// Parameters marked optional may be unknown to the kernel.
func newMount(fsType string, params, optional []fsParam) (int, error) {
	ctx, err := unix.Fsopen(fsType, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("%s: %w", fsType, err)
	}
	defer func() { _ = unix.Close(ctx) }()
	set := func(p fsParam) error {
		if p.value == "" {
			return unix.FsconfigSetFlag(ctx, p.key)
		}
		return unix.FsconfigSetString(ctx, p.key, p.value)
	}
	for _, p := range params {
		if err := set(p); err != nil {
			return -1, fmt.Errorf("%s option %s: %w", fsType, p.key, err)
		}
	}
	for _, p := range optional {
		_ = set(p)
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return -1, fmt.Errorf("%s: %w", fsType, err)
	}
	m, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("mount %s: %w", fsType, err)
	}
	return m, nil
}

// upperLayer makes a tmpfs with the directories upper and work; upper has
// lower's owner and mode, which become those of the overlay's root.
func upperLayer(lower *os.File) (int, error) {
	m, err := newMount("tmpfs", []fsParam{{"mode", "0700"}}, []fsParam{{"source", "gvmspawn-ephemeral"}})
	if err != nil {
		return -1, err
	}
	fail := func(err error) (int, error) {
		_ = unix.Close(m)
		return -1, fmt.Errorf("the upper layer: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(lower.Fd()), &st); err != nil {
		return fail(err)
	}
	for _, d := range []string{"upper", "work"} {
		if err := unix.Mkdirat(m, d, 0o700); err != nil {
			return fail(err)
		}
	}
	if err := unix.Fchownat(m, "upper", int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fail(err)
	}
	if err := unix.Fchmodat(m, "upper", st.Mode&0o7777, 0); err != nil {
		return fail(err)
	}
	return m, nil
}

// overlay mounts an overlayfs from descriptors; paths through /proc need no
// escapes.
func overlay(lower, upper int) (int, error) {
	up := func(name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", upper, name) }
	return newMount("overlay", []fsParam{
		{"lowerdir", fmt.Sprintf("/proc/self/fd/%d", lower)}, {"upperdir", up("upper")}, {"workdir", up("work")},
	}, []fsParam{
		{"redirect_dir", "on"}, // directories of the lower layer can be renamed
		{"xino", "auto"},
		{"volatile", ""}, // syncing what will be lost is of no use
	})
}
