// Package bootentry finds the kernel in a directory tree or in the boot
// partitions of a disk: by the UAPI Group's Boot Loader Specification, types
// 1 (configuration files) and 2 (unified kernel images), and where
// distributions put kernels without it. Nothing is ever written; boot
// counters are only read.
package bootentry

import (
	"errors"
	"io"
	"io/fs"
	"path"
	"sort"
	"strconv"
	"strings"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/image"
)

// Bounds of what we read of a tree that somebody else filled.
const (
	maxConfig  = 64 << 10 // bytes of a configuration file
	maxEntries = 1000     // in a directory
	maxInitrds = 64
)

// Entry is something that can be booted.
type Entry struct {
	// ID is the file's name without suffix and boot counter.
	ID                          string
	Title                       string
	SortKey, Version, MachineID string
	// Kernel and Initrds are paths in FS. Kernel may be a UKI, and must be one
	// if UKI is set.
	Kernel  string
	UKI     bool
	Initrds []string
	// Options are the entry's part of the kernel command line. Those inside
	// of a UKI are not among them.
	Options string
	// Profile is the UKI's profile.
	Profile int
	// FS is where the entry's files are.
	FS fs.FS

	triesLeft, triesDone int // -1: not counted
}

// Find returns the entries of boot partitions (ESP, XBOOTLDR) in the order in
// which a boot loader would show them, the default one first.
func Find(partitions ...fs.FS) []Entry {
	var entries []Entry
	pattern := ""
	for _, p := range partitions {
		entries = append(entries, type1(p)...)
		entries = append(entries, type2(p)...)
		if pattern == "" {
			pattern = defaultPattern(p)
		}
	}
	sort.SliceStable(entries, func(i, j int) bool { return before(&entries[i], &entries[j]) })
	for i := range entries {
		if ok, err := path.Match(pattern, entries[i].ID); pattern != "" && err == nil && ok {
			chosen := entries[i]
			copy(entries[1:i+1], entries[:i])
			entries[0] = chosen
			break
		}
	}
	return entries
}

// defaultPattern is the glob of loader.conf's "default", without suffix.
func defaultPattern(fsys fs.FS) string {
	for _, kv := range config(fsys, "loader/loader.conf") {
		if kv[0] == "default" && !strings.HasPrefix(kv[1], "@") {
			return strings.TrimSuffix(strings.TrimSuffix(kv[1], ".conf"), ".efi")
		}
	}
	return ""
}

// before orders entries: not used up first, then by sort key (those that have
// one first), machine ID and version, else by ID; versions newest first.
func before(a, b *Entry) bool {
	if x, y := a.triesLeft == 0, b.triesLeft == 0; x != y {
		return y
	}
	if (a.SortKey == "") != (b.SortKey == "") {
		return a.SortKey != ""
	}
	if a.SortKey != "" {
		if a.SortKey != b.SortKey {
			return a.SortKey < b.SortKey
		}
		if a.MachineID != b.MachineID {
			return a.MachineID < b.MachineID
		}
		if c := image.CompareVersions(a.Version, b.Version); c != 0 {
			return c > 0
		}
	}
	if c := image.CompareVersions(a.ID, b.ID); c != 0 {
		return c > 0
	}
	if a.triesLeft != b.triesLeft {
		return a.triesLeft > b.triesLeft
	}
	return a.triesDone < b.triesDone
}

// type1 reads loader/entries/*.conf.
func type1(fsys fs.FS) []Entry {
	var entries []Entry
	for _, name := range list(fsys, "loader/entries", ".conf") {
		e := Entry{FS: fsys}
		e.setID(name[:len(name)-len(".conf")])
		if e.parse(config(fsys, "loader/entries/"+name)) && isFile(fsys, e.Kernel) {
			entries = append(entries, e)
		}
	}
	return entries
}

// type2 reads EFI/Linux/*.efi.
func type2(fsys fs.FS) []Entry {
	var entries []Entry
	for _, name := range list(fsys, "EFI/Linux", ".efi") {
		e := Entry{FS: fsys, UKI: true, Kernel: "EFI/Linux/" + name}
		e.setID(name[:len(name)-len(".efi")])
		u, done, err := openUKI(fsys, e.Kernel, false)
		if err != nil {
			continue
		}
		first := func(fields ...string) string {
			for _, f := range fields {
				if v := u.release(f); v != "" {
					return v
				}
			}
			return ""
		}
		e.Title = first("PRETTY_NAME", "NAME", "ID")
		e.SortKey = first("IMAGE_ID", "ID")
		e.Version = first("IMAGE_VERSION", "VERSION", "VERSION_ID", "BUILD_ID")
		done()
		entries = append(entries, e)
	}
	return entries
}

// openUKI opens the UKI or add-on at name; done closes it.
func openUKI(fsys fs.FS, name string, addon bool) (u *UKI, done func(), err error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, nil, err
	}
	r, ok := f.(io.ReaderAt)
	fi, err := f.Stat()
	if err == nil && (!ok || !fi.Mode().IsRegular()) {
		err = ErrNotUKI
	}
	if err == nil {
		u, err = ParseUKI(r, fi.Size(), addon)
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return u, func() { f.Close() }, nil
}

// setID takes the boot counter, "+LEFT[-DONE]", off a file's name.
func (e *Entry) setID(name string) {
	e.ID, e.triesLeft, e.triesDone = name, -1, -1
	i := strings.LastIndexByte(name, '+')
	if i < 0 {
		return
	}
	left, done, found := strings.Cut(name[i+1:], "-")
	l, err := strconv.ParseUint(left, 10, 16)
	if err != nil {
		return
	}
	d := uint64(0)
	if found {
		if d, err = strconv.ParseUint(done, 10, 16); err != nil {
			return
		}
	}
	e.ID, e.triesLeft, e.triesDone = name[:i], int(l), int(d)
}

// parse fills the entry in and reports whether it can be booted here.
func (e *Entry) parse(lines [][2]string) bool {
	for _, kv := range lines {
		switch v := kv[1]; kv[0] {
		case "title":
			e.Title = v
		case "version":
			e.Version = v
		case "machine-id":
			e.MachineID = v
		case "sort-key":
			e.SortKey = v
		case "linux":
			e.Kernel, e.UKI = clean(v), false
		case "uki", "efi": // of EFI programs we can boot only UKIs
			if e.Kernel == "" {
				e.Kernel, e.UKI = clean(v), true
			}
		case "initrd":
			if len(e.Initrds) < maxInitrds {
				e.Initrds = append(e.Initrds, clean(v))
			}
		case "options":
			e.Options = strings.TrimSpace(e.Options + " " + v)
		case "profile":
			if n, err := strconv.ParseUint(v, 10, 16); err == nil {
				e.Profile = int(n)
			}
		case "architecture":
			if !strings.EqualFold(v, "x64") && !strings.EqualFold(v, "x86-64") {
				return false
			}
		}
	}
	return e.Kernel != ""
}

// clean makes a path of a configuration file one of the file system.
func clean(p string) string {
	return strings.TrimPrefix(path.Clean("/"+strings.ReplaceAll(p, `\`, "/")), "/")
}

// config reads a file of "KEY VALUE" lines; what cannot be read is empty.
func config(fsys fs.FS, name string) [][2]string {
	f, err := fsys.Open(name)
	if err != nil {
		return nil
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfig))
	if err != nil {
		return nil
	}
	var lines [][2]string
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		i := strings.IndexAny(line, " \t")
		if i < 0 {
			continue
		}
		lines = append(lines, [2]string{line[:i], strings.TrimSpace(line[i:])})
	}
	return lines
}

// list returns the names in a directory that end in suffix, in any case as on
// FAT, sorted.
func list(fsys fs.FS, dir, suffix string) []string {
	f, err := fsys.Open(dir)
	if err != nil {
		return nil
	}
	defer f.Close()
	d, ok := f.(fs.ReadDirFile)
	if !ok {
		return nil
	}
	entries, err := d.ReadDir(maxEntries)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil
	}
	var names []string
	for _, e := range entries {
		if n := e.Name(); len(n) > len(suffix) && strings.EqualFold(n[len(n)-len(suffix):], suffix) && n[0] != '.' {
			names = append(names, n)
		}
	}
	sort.Strings(names)
	return names
}

func isFile(fsys fs.FS, name string) bool {
	fi, err := fs.Stat(fsys, name)
	return err == nil && fi.Mode().IsRegular()
}
