package bootentry

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/image"
)

// Kernel is what to boot, as open files. Those out of a UKI or a disk are
// copies in memory.
type Kernel struct {
	Kernel  *os.File
	Initrds []*os.File
	// Options begin the kernel command line.
	Options string
	// From says where it was found, for people.
	From string
}

// Close closes the files.
func (k *Kernel) Close() {
	if k.Kernel != nil {
		k.Kernel.Close()
	}
	for _, f := range k.Initrds {
		f.Close()
	}
}

// maxKernel bounds a kernel or initrd that is copied, in bytes.
const maxKernel = 2 << 30

// ErrNone is returned where there is no kernel.
var ErrNone = errors.New("no kernel was found")

// FromTree finds the kernel of a directory tree: the default boot entry of
// efi and boot in it, else the newest kernel in usr/lib/modules or boot. In
// the latter case the initrd of the distribution, which expects its root on a
// disk, is only used if initrd is set.
func FromTree(t fs.FS, initrd bool) (*Kernel, error) {
	k, err := FromPartitions(prefixed(t, "efi"), prefixed(t, "boot"))
	if errors.Is(err, ErrNone) {
		return fromDistribution(t, initrd)
	}
	return k, err
}

// FromPartitions finds the kernel of boot partitions: that of the default entry.
func FromPartitions(partitions ...fs.FS) (*Kernel, error) {
	entries := Find(partitions...)
	if len(entries) == 0 {
		return nil, ErrNone
	}
	k, err := entries[0].Load()
	if err != nil {
		return nil, fmt.Errorf("boot entry %s: %w", entries[0].ID, err)
	}
	return k, nil
}

// candidate is a kernel as distributions install them.
type candidate struct{ version, kernel string }

// fromDistribution finds kernels that no boot entry names.
func fromDistribution(fsys fs.FS, initrd bool) (*Kernel, error) {
	found := installed(fsys)
	if len(found) == 0 {
		return nil, ErrNone
	}
	sort.SliceStable(found, func(i, j int) bool { return image.CompareVersions(found[i].version, found[j].version) > 0 })
	e := Entry{FS: fsys, ID: found[0].version, Kernel: found[0].kernel}
	if initrd {
		v := found[0].version
		for _, p := range []string{"usr/lib/modules/" + v + "/initrd", "boot/initrd.img-" + v, "boot/initramfs-" + v + ".img", "boot/initrd-" + v,
			"boot/initrd.img", "initrd.img", "boot/initramfs-linux.img"} {
			if isFile(fsys, p) {
				e.Initrds = []string{p}
				break
			}
		}
	}
	return e.Load()
}

func installed(fsys fs.FS) (found []candidate) {
	for _, v := range list(fsys, "usr/lib/modules", "") {
		if p := "usr/lib/modules/" + v + "/vmlinuz"; isFile(fsys, p) {
			found = append(found, candidate{v, p})
		}
	}
	for _, name := range list(fsys, "boot", "") {
		for _, prefix := range []string{"vmlinuz-", "vmlinux-"} {
			v, ok := strings.CutPrefix(name, prefix)
			if p := "boot/" + name; ok && !strings.HasSuffix(v, ".old") && isFile(fsys, p) {
				found = append(found, candidate{v, p})
			}
		}
	}
	for _, p := range []string{"boot/vmlinuz", "vmlinuz"} {
		if len(found) == 0 && isFile(fsys, p) {
			found = append(found, candidate{"", p})
		}
	}
	return found
}

// Load opens an entry's files, and takes a UKI apart.
func (e *Entry) Load() (_ *Kernel, err error) {
	k := &Kernel{Options: e.Options, From: e.Kernel}
	defer func() {
		if err != nil {
			k.Close()
		}
	}()
	u, done, err := openUKI(e.FS, e.Kernel, false)
	switch {
	case err == nil:
		defer done()
		err = k.addUKI(u, e.FS, e.Kernel, e.Profile)
	case errors.Is(err, ErrNotUKI) && !e.UKI:
		k.Kernel, err = open(e.FS, e.Kernel)
	}
	if err != nil {
		return nil, err
	}
	for _, name := range e.Initrds {
		f, err := open(e.FS, name)
		if err != nil {
			return nil, err
		}
		k.Initrds = append(k.Initrds, f)
	}
	return k, nil
}

// OpenUKI takes the UKI at a path of the host apart, with the add-ons beside
// it. It returns ErrNotUKI for another kernel.
func OpenUKI(name string, profile int) (*Kernel, error) {
	e := Entry{FS: os.DirFS(path.Dir(name)), Kernel: path.Base(name), UKI: true, Profile: profile}
	k, err := e.Load()
	if err == nil {
		k.From = name
	}
	return k, err
}

// addUKI adds the parts of a UKI and its add-ons (systemd-stub(7)).
func (k *Kernel) addUKI(u *UKI, fsys fs.FS, name string, profile int) (err error) {
	if profile >= u.Profiles() {
		return fmt.Errorf("there is no profile %d", profile)
	}
	if k.Kernel, err = toMemory("kernel", u.Section(".linux", profile)); err != nil {
		return err
	}
	parts := []*UKI{u}
	for _, dir := range []string{name + ".extra.d", "loader/addons"} {
		for _, a := range list(fsys, dir, ".addon.efi") {
			if add, done, err := openUKI(fsys, dir+"/"+a, true); err == nil {
				defer done()
				parts = append(parts, add)
			}
		}
	}
	// Microcode comes first: the kernel looks for it only there.
	for _, section := range []string{".ucode", ".initrd"} {
		for i, p := range parts {
			s := p.Section(section, profileOf(i, profile))
			if s == nil {
				continue
			}
			f, err := toMemory("initrd", s)
			if err != nil {
				return err
			}
			k.Initrds = append(k.Initrds, f)
		}
	}
	for i, p := range parts {
		k.Options = strings.TrimSpace(k.Options + " " + p.CommandLine(profileOf(i, profile)))
	}
	return nil
}

// profileOf is the profile for part i: add-ons have none.
func profileOf(i, profile int) int {
	if i > 0 {
		return 0
	}
	return profile
}

// open opens a file for the machine, by copying it unless it is a file of the host.
func open(fsys fs.FS, name string) (*os.File, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: name, Err: unix.EINVAL}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	if n, ok := f.(namedFile); ok {
		return n.File, nil
	}
	defer f.Close()
	return toMemory(path.Base(name), f)
}

// toMemory copies r into a file in memory.
func toMemory(name string, r io.Reader) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot make a file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	n, err := io.Copy(f, io.LimitReader(r, maxKernel+1))
	if err == nil && n > maxKernel {
		err = errors.New("it is larger than 2 GiB")
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot read %s: %w", name, err)
	}
	return f, nil
}
