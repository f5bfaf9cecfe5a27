package bootentry

import (
	"debug/pe"
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
	// UKI says that Kernel is a whole unified kernel image.
	UKI bool
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

// How says how a kernel is to be found and opened.
type How struct {
	// Initrd takes the initrd that a distribution put beside a kernel without a
	// boot entry, and which expects its root on a disk.
	Initrd bool
	// Whole leaves a UKI in one piece: firmware is to start it.
	Whole bool
}

// FromTree finds the kernel of a directory tree: the default boot entry of
// efi and boot in it, else the newest kernel in usr/lib/modules or boot.
func FromTree(t fs.FS, how How) (*Kernel, error) {
	k, err := FromPartitions(how, prefixed(t, "efi"), prefixed(t, "boot"))
	if errors.Is(err, ErrNone) {
		return fromDistribution(t, how)
	}
	return k, err
}

// FromPartitions finds the kernel of boot partitions: that of the default entry.
func FromPartitions(how How, partitions ...fs.FS) (*Kernel, error) {
	entries := Find(partitions...)
	if len(entries) == 0 {
		return nil, ErrNone
	}
	k, err := entries[0].load(how.Whole)
	if err != nil {
		return nil, fmt.Errorf("boot entry %s: %w", entries[0].ID, err)
	}
	return k, nil
}

// candidate is a kernel as distributions install them.
type candidate struct{ version, kernel string }

// fromDistribution finds kernels that no boot entry names.
func fromDistribution(fsys fs.FS, how How) (*Kernel, error) {
	found := installed(fsys)
	if len(found) == 0 {
		return nil, ErrNone
	}
	sort.SliceStable(found, func(i, j int) bool { return image.CompareVersions(found[i].version, found[j].version) > 0 })
	e := Entry{FS: fsys, ID: found[0].version, Kernel: found[0].kernel}
	if how.Initrd {
		v := found[0].version
		for _, p := range []string{"usr/lib/modules/" + v + "/initrd", "boot/initrd.img-" + v, "boot/initramfs-" + v + ".img", "boot/initrd-" + v,
			"boot/initrd.img", "initrd.img", "boot/initramfs-linux.img"} {
			if isFile(fsys, p) {
				e.Initrds = []string{p}
				break
			}
		}
	}
	return e.load(how.Whole)
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
func (e *Entry) Load() (*Kernel, error) { return e.load(false) }

// load is Load, or leaves a UKI whole.
func (e *Entry) load(whole bool) (_ *Kernel, err error) {
	k := &Kernel{Options: e.Options, From: e.Kernel}
	defer func() {
		if err != nil {
			k.Close()
		}
	}()
	u, done, err := openUKI(e.FS, e.Kernel, false)
	switch {
	case err == nil && whole:
		done()
		k.UKI = true
		k.Kernel, err = open(e.FS, e.Kernel)
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

// Kind is what a kernel's file is to firmware.
type Kind uint8

// Values of Kind.
const (
	// NotPE cannot be started by UEFI firmware.
	NotPE Kind = iota
	// PE is an EFI executable, such as a kernel with EFI stub.
	PE
	// Unified is a UKI.
	Unified
)

// Inspect says what the kernel at a path of the host is.
func Inspect(name string) (Kind, error) {
	f, err := os.Open(name)
	if err != nil {
		return NotPE, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return NotPE, err
	}
	if _, err := ParseUKI(f, fi.Size(), false); err == nil {
		return Unified, nil
	}
	image, err := pe.NewFile(f)
	if err != nil {
		return NotPE, nil
	}
	return PE, image.Close()
}

// addUKI adds the parts of a UKI and its add-ons (systemd-stub(7)).
func (k *Kernel) addUKI(u *UKI, fsys fs.FS, name string, profile int) (err error) {
	if profile >= u.Profiles() {
		return fmt.Errorf("there is no profile %d", profile)
	}
	if k.Kernel, err = ToMemory("kernel", u.Section(".linux", profile)); err != nil {
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
			f, err := ToMemory("initrd", s)
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
	return ToMemory(path.Base(name), f)
}

// ToMemory copies r, up to its end, into a file in memory that is gone when it is
// closed.
func ToMemory(name string, r io.Reader) (*os.File, error) {
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
