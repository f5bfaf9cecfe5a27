// Package image finds the image of a machine and what is in it: names and
// search paths (vmspawn's --machine=), and the partitions of a disk by the
// UAPI Group's Discoverable Partitions Specification.
package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/arg"
)

// Image is where a machine's root file system is.
type Image struct {
	Path      string // absolute
	Directory bool   // else a file or block device
}

// Directories are searched for images by name, in this order.
var Directories = []string{"/etc/machines", "/run/machines", "/var/lib/machines", "/var/lib/container", "/usr/local/lib/machines", "/usr/lib/machines"}

// UserDirectories are searched before them for a user other than root.
func UserDirectories() []string {
	var dirs []string
	add := func(variable, fallback string) {
		dir := os.Getenv(variable)
		if dir == "" && os.Getenv("HOME") != "" {
			dir = filepath.Join(os.Getenv("HOME"), fallback)
		}
		if filepath.IsAbs(dir) {
			dirs = append(dirs, filepath.Join(dir, "machines"))
		}
	}
	add("XDG_CONFIG_HOME", ".config")
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		dirs = append(dirs, filepath.Join(dir, "machines"))
	}
	add("XDG_STATE_HOME", ".local/state")
	add("XDG_DATA_HOME", ".local/share")
	return dirs
}

// Lookup finds the image of a machine: NAME, NAME.raw, or the newest version
// in the directories NAME.v and NAME.raw.v. The error says if there is none.
func Lookup(name string, directories []string) (Image, error) {
	for _, dir := range directories {
		for _, file := range []string{name, name + ".raw"} {
			path := filepath.Join(dir, file)
			im, err := Open(path)
			if errors.Is(err, fs.ErrNotExist) {
				if path = newest(path+".v", name, strings.TrimPrefix(file, name)); path == "" {
					continue
				}
				im, err = Open(path)
			}
			return im, err
		}
	}
	return Image{}, fmt.Errorf("no image for machine '%s'", name)
}

// Open says what is at path: a directory, or a file or block device.
func Open(path string) (Image, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return Image{}, err
	}
	switch m := fi.Mode(); {
	case m.IsDir():
		return Image{path, true}, nil
	case m.IsRegular(), m&os.ModeDevice != 0 && m&os.ModeCharDevice == 0:
		return Image{path, false}, nil
	}
	return Image{}, fmt.Errorf("%s is neither a directory nor a disk image nor a block device", path)
}

// newest picks the newest version in a ".v" directory (systemd.v(7)): the
// entries NAME_VERSION[.raw], without boot counters that are used up.
func newest(dir, name, suffix string) string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ""
	}
	type version struct{ file, version string }
	var found []version
	for _, e := range entries {
		v, ok := strings.CutPrefix(e.Name(), name+"_")
		if !ok {
			continue
		}
		if v, ok = strings.CutSuffix(v, suffix); !ok {
			continue
		}
		if i := strings.LastIndexByte(v, '+'); i >= 0 {
			if v[i+1:] == "0" || strings.HasPrefix(v[i+1:], "0-") {
				continue // no tries left
			}
			v = v[:i]
		}
		if v = strings.TrimSuffix(v, "_x86-64"); v != "" {
			found = append(found, version{e.Name(), v})
		}
	}
	if len(found) == 0 {
		return ""
	}
	sort.Slice(found, func(i, j int) bool { return CompareVersions(found[i].version, found[j].version) < 0 })
	return filepath.Join(dir, found[len(found)-1].file)
}

// Name derives a machine's name from its image: the host's name for the
// directory /, else the file's name without ".raw", cleaned to a host name.
func Name(im Image) (string, error) {
	base := filepath.Base(im.Path)
	switch {
	case im.Directory && im.Path == "/":
		var u unix.Utsname
		if err := unix.Uname(&u); err == nil {
			base = unix.ByteSliceToString(u.Nodename[:])
		}
	case !im.Directory:
		base = strings.TrimSuffix(base, ".raw")
	}
	name := arg.CleanHostName(base)
	if arg.MachineName(name) != nil {
		return "", errors.New("failed to determine machine name automatically, please use -M")
	}
	return name, nil
}
