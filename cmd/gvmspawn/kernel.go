package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/bootentry"
)

// kernel decides what is booted: --linux=, else what is found in the image.
func (p *plan) kernel() error {
	s := p.s
	if s.linux == "" {
		return p.discoverKernel()
	}
	for _, f := range append([]string{s.linux}, s.initrds...) {
		if err := readable(f); err != nil {
			return err
		}
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

// discoverKernel looks for a kernel in a directory.
func (p *plan) discoverKernel() error {
	if !p.image.Directory {
		return fmt.Errorf("finding the kernel in a disk image is not supported yet, give the kernel of %s with --linux=", p.image.Path)
	}
	t, err := bootentry.OpenTree(p.image.Path)
	if err != nil {
		return pathError(err)
	}
	defer t.Close()
	k, err := bootentry.FromTree(t, false)
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

// use boots a kernel whose files are open.
func (p *plan) use(k *bootentry.Kernel) {
	name := func(f *os.File) string {
		p.files = append(p.files, f)
		return "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
	}
	p.cfg.Boot.Kernel = name(k.Kernel)
	for _, f := range k.Initrds {
		p.cfg.Boot.Initrds = append(p.cfg.Boot.Initrds, name(f))
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
