// Package firmware chooses the firmware of a machine by QEMU's firmware
// descriptors (QEMU docs/interop/firmware.json), as systemd-vmspawn does, and
// keeps the EFI variables of each machine.
package firmware

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// maxDescriptor bounds what is read of a descriptor, in bytes.
const maxDescriptor = 1 << 20

// ErrNone is returned by Find if no descriptor fits.
var ErrNone = errors.New("no UEFI firmware can be used")

// Image is a file of the firmware.
type Image struct {
	Path   string `json:"filename"`
	Format string `json:"format"` // "raw" or "qcow2"
}

// Descriptor is a firmware descriptor with what we need of it.
type Descriptor struct {
	Path string `json:"-"` // of the descriptor itself
	Text []byte `json:"-"` // the descriptor as it stands in the file

	Description string   `json:"description"`
	Interfaces  []string `json:"interface-types"`
	Mapping     struct {
		Device     string `json:"device"`
		Mode       string `json:"mode"` // of device "flash"; "" is "split"
		Executable Image  `json:"executable"`
		Template   Image  `json:"nvram-template"`
	} `json:"mapping"`
	Targets []struct {
		Architecture string   `json:"architecture"`
		Machines     []string `json:"machines"`
	} `json:"targets"`
	Features []string `json:"features"`
	Tags     []string `json:"tags"`
}

// Directories are searched for descriptors, the first wins.
func Directories() []string {
	config := os.Getenv("XDG_CONFIG_HOME")
	if config == "" {
		config = filepath.Join(os.Getenv("HOME"), ".config")
	}
	return []string{filepath.Join(config, "qemu/firmware"), "/etc/qemu/firmware", "/usr/share/qemu/firmware"}
}

// List returns the paths of all descriptors, sorted by file name. A file hides
// those of the same name in later directories; an empty one, or a link to
// /dev/null, only hides.
func List(directories []string) []string {
	paths := map[string]string{}
	for _, dir := range directories {
		found, err := filepath.Glob(filepath.Join(dir, "*.json"))
		if err != nil {
			continue
		}
		for _, p := range found {
			name := filepath.Base(p)
			if _, taken := paths[name]; !taken {
				paths[name] = p
			}
		}
	}
	var list []string
	for _, p := range paths {
		if fi, err := os.Stat(p); err == nil && fi.Mode().IsRegular() && fi.Size() > 0 {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b string) int { return strings.Compare(filepath.Base(a), filepath.Base(b)) })
	return list
}

// Load reads a descriptor. The error names the file and what is wrong in it.
func Load(path string) (*Descriptor, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	if fi.Size() > maxDescriptor {
		return nil, fmt.Errorf("%s is not a firmware descriptor: it has %d KiB", path, fi.Size()>>10)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	d := &Descriptor{Path: path, Text: b}
	if err := json.NewDecoder(bytes.NewReader(b)).Decode(d); err != nil {
		return nil, fmt.Errorf("%s is not a firmware descriptor: %w", path, err)
	}
	if err := d.complete(); err != nil {
		return nil, fmt.Errorf("%s is not a firmware descriptor: %w", path, err)
	}
	return d, nil
}

// complete reports a mandatory field that is missing.
func (d *Descriptor) complete() error {
	for _, f := range []struct {
		name    string
		missing bool
	}{
		{"interface-types", len(d.Interfaces) == 0},
		{"mapping", d.Mapping.Device == ""},
		{"targets", len(d.Targets) == 0},
	} {
		if f.missing {
			return fmt.Errorf("the field %q is missing", f.name)
		}
	}
	return nil
}

// RequiresSMM reports whether the firmware needs System Management Mode.
func (d *Descriptor) RequiresSMM() bool { return slices.Contains(d.Features, featureRequiresSMM) }

// machineType is what our machine is to firmware: descriptors name machine
// types by patterns such as "pc-q35-*".
const machineType = "pc-q35-10.0"

// usable says why our machine cannot run the firmware.
func (d *Descriptor) usable() error {
	m := &d.Mapping
	switch {
	case !slices.Contains(d.Interfaces, "uefi"):
		return errors.New("is no UEFI firmware")
	case !d.forMachine():
		return errors.New("is not for x86-64 machines of type q35")
	case m.Device != "flash" || m.Mode != "" && m.Mode != "split" && m.Mode != "stateless":
		return fmt.Errorf("is mapped as %s, not as split flash", strings.TrimSuffix(m.Device+" "+m.Mode, " "))
	case m.Executable.Path == "":
		return errors.New("names no executable")
	case m.Mode != "stateless" && m.Template.Path == "":
		return errors.New("names no template of its variables")
	}
	for _, i := range []Image{m.Executable, m.Template} {
		if i.Path != "" && i.Format != "raw" && i.Format != "qcow2" {
			return fmt.Errorf("has an image of format %q", i.Format)
		}
	}
	return nil
}

func (d *Descriptor) forMachine() bool {
	for _, t := range d.Targets {
		if t.Architecture != "x86_64" {
			continue
		}
		for _, pattern := range t.Machines {
			if ok, err := path.Match(pattern, machineType); err == nil && ok || pattern == "q35" {
				return true
			}
		}
	}
	return false
}

// Find returns the first descriptor that fits. Firmware that requires System
// Management Mode comes after all that does not, as KVM does not have that on every
// host. The error, ErrNone, says for each descriptor why it does not fit.
func Find(directories []string, features *Features) (*Descriptor, error) {
	paths := List(directories)
	if len(paths) == 0 {
		return nil, fmt.Errorf("%w: there is no descriptor in %s; install firmware, such as Debian's package ovmf",
			ErrNone, strings.Join(directories, ", "))
	}
	var why []string
	var last *Descriptor
	for _, p := range paths {
		d, err := candidate(p, features)
		switch {
		case err != nil:
			why = append(why, err.Error())
		case !d.RequiresSMM():
			return d, nil
		case last == nil:
			last = d
		}
	}
	if last != nil {
		return last, nil
	}
	return nil, fmt.Errorf("%w: %s", ErrNone, strings.Join(why, "; "))
}

// candidate loads a descriptor and says why it does not fit.
func candidate(path string, features *Features) (*Descriptor, error) {
	d, err := Load(path)
	if err != nil {
		return nil, err
	}
	if err = d.usable(); err == nil {
		err = features.check(d.Features)
	}
	if err != nil {
		return nil, fmt.Errorf("%s %w", path, err)
	}
	return d, nil
}

// LoadFor reads the descriptor that the user chose, or takes a code image,
// named *.fd or *.bin, as firmware without variables of its own.
func LoadFor(path string) (*Descriptor, error) {
	if ext := filepath.Ext(path); ext == ".fd" || ext == ".bin" {
		d := &Descriptor{Path: path, Interfaces: []string{"uefi"}}
		d.Mapping.Device, d.Mapping.Mode, d.Mapping.Executable = "flash", "stateless", Image{path, "raw"}
		return d, nil
	}
	d, err := Load(path)
	if err == nil {
		if err = d.usable(); err != nil {
			err = fmt.Errorf("%s %w", path, err)
		}
	}
	return d, err
}
