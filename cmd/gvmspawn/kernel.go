package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/bootentry"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/ext4"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/fat"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/firmware"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/image"
	"github.com/gvmspawn/gvmspawn/vmm"
)

// kernel decides what is booted: --linux=, else what is found in the image.
func (p *plan) kernel() error {
	if !p.image.Directory {
		disk, err := vmm.OpenDisk(p.rootImage())
		if err != nil {
			return pathError(err)
		}
		defer disk.Close()
		p.partitions, err = image.ReadTable(disk)
		if err != nil && !errors.Is(err, image.ErrNoTable) {
			return fmt.Errorf("%s: %w", p.image.Path, err)
		}
		if p.s.linux == "" && p.s.wantsFirmware() == "" {
			return p.fromDiskOrFirmware(disk)
		}
	}
	if p.s.wantsFirmware() != "" {
		if err := p.addFirmware(); err != nil {
			return err
		}
		return p.firmwareKernel()
	}
	if p.s.linux == "" {
		return p.discovered(p.fromDirectory(bootentry.How{}))
	}
	return p.givenKernel()
}

// fromDiskOrFirmware uses the kernel in a disk image. Where we find none,
// firmware may find something to start.
func (p *plan) fromDiskOrFirmware(disk *vmm.DiskReader) error {
	k, err := p.fromDisk(disk)
	if !errors.Is(err, bootentry.ErrNone) || p.s.firmware == firmwareNone {
		return p.discovered(k, err)
	}
	err = p.addFirmware()
	if errors.Is(err, firmware.ErrNone) {
		return fmt.Errorf("no kernel was found in %s, give one with --linux=; %w", p.image.Path, err)
	}
	return err
}

// givenKernel uses --linux= and --initrd=.
func (p *plan) givenKernel() error {
	s := p.s
	if err := p.readableKernel(); err != nil {
		return err
	}
	k, err := bootentry.OpenUKI(s.linux, 0)
	switch {
	case errors.Is(err, bootentry.ErrNotUKI):
		p.cfg.Boot.Kernel, p.cfg.Boot.Initrds = s.linux, s.initrds
		return nil
	case err != nil:
		return fmt.Errorf("%s: %w", s.linux, pathError(err))
	}
	p.use(k)
	p.cfg.Boot.Initrds = append(p.cfg.Boot.Initrds, s.initrds...)
	return nil
}

// readableKernel checks the files of --linux= and --initrd=.
func (p *plan) readableKernel() error {
	for _, f := range append([]string{p.s.linux}, p.s.initrds...) {
		if err := readable(f); err != nil {
			return err
		}
	}
	return nil
}

// discovered uses the kernel that was found in the image, or says that there is none.
func (p *plan) discovered(k *bootentry.Kernel, err error) error {
	if errors.Is(err, bootentry.ErrNone) {
		return fmt.Errorf("no kernel was found in %s, give one with --linux=", p.image.Path)
	}
	if err != nil {
		return fmt.Errorf("cannot use the kernel in %s: %w", p.image.Path, err)
	}
	p.cfg.Log.Debug("Found a kernel in the image", "path", k.From)
	p.use(k)
	return nil
}

// fromDirectory looks for a kernel in a directory. The initrd that a
// distribution put beside it is left alone: it expects its root on a disk.
func (p *plan) fromDirectory(how bootentry.How) (*bootentry.Kernel, error) {
	t, err := bootentry.OpenTree(p.image.Path)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	return bootentry.FromTree(t, how)
}

// fromDisk looks for a kernel in a disk: by the boot entries of its EFI system
// and extended boot loader partitions, else in its root file system, which is
// a partition or the whole disk.
func (p *plan) fromDisk(disk *vmm.DiskReader) (*bootentry.Kernel, error) {
	var boot []fs.FS
	how := bootentry.How{Initrd: true}
	for _, typ := range []string{image.TypeESP, image.TypeXBOOTLDR} {
		if part := image.Find(p.partitions, typ); part != nil {
			if fsys := openVolume(io.NewSectionReader(disk, part.Start, part.Size)); fsys != nil {
				boot = append(boot, fsys)
			}
		}
	}
	k, err := bootentry.FromPartitions(how, boot...)
	if !errors.Is(err, bootentry.ErrNone) {
		return k, err
	}
	root := io.NewSectionReader(disk, 0, disk.Size())
	if part := image.Find(p.partitions, image.TypeRootX8664); part != nil {
		root = io.NewSectionReader(disk, part.Start, part.Size)
	}
	fsys := openVolume(root)
	if fsys == nil {
		return nil, bootentry.ErrNone
	}
	return bootentry.FromTree(fsys, how)
}

// openVolume opens a file system that we can read, else it returns nil.
func openVolume(r io.ReaderAt) fs.FS {
	if fsys, err := fat.New(r); err == nil {
		return fsys
	}
	if fsys, err := ext4.New(r); err == nil {
		return fsys
	}
	return nil
}

// hold keeps a file open as long as the plan, and returns a path of it.
func (p *plan) hold(f *os.File) string {
	p.files = append(p.files, f)
	return "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
}

// use boots a kernel whose files are open.
func (p *plan) use(k *bootentry.Kernel) {
	p.cfg.Boot.Kernel = p.hold(k.Kernel)
	for _, f := range k.Initrds {
		p.cfg.Boot.Initrds = append(p.cfg.Boot.Initrds, p.hold(f))
	}
	p.options = strings.Fields(k.Options)
	if p.image.Directory {
		p.options = withoutRoot(p.options)
	}
}

// readable checks that path is a regular file that can be opened.
func readable(path string) error {
	fi, err := os.Stat(path)
	if err != nil {
		return pathError(err)
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return pathError(err)
	}
	return f.Close()
}
