package initrd

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
)

// Bounds on what an untrusted tree may make us read, in bytes and pieces.
const (
	maxIndexFile = 32 << 20
	maxModule    = 64 << 20
	maxModules   = 256
	maxTotal     = 256 << 20 // of all modules together
	maxDepth     = 64
	maxName      = 200
)

// Need says how much a module is needed.
type Need uint8

const (
	// Required: without it there is no boot. That it is neither built in nor
	// found is an error.
	Required Need = iota
	// Useful: it is worth an initial RAM disk, but the boot goes on without it.
	Useful
	// Extra: it is loaded if there is an initial RAM disk anyway, and worth
	// one if the guest cannot load it from its own tree later.
	Extra
)

// Module is a kernel module that is wanted in the guest.
type Module struct {
	// Name is the module's, '-' and '_' being the same.
	Name string
	Need Need
	// Driver is a string by which a kernel of which nothing else is known
	// can be searched for the module being built in: the driver's or file
	// system's name. Empty if there is no such string.
	Driver string
}

// foundModule is a module file to load.
type foundModule struct {
	name string // with '_'
	data []byte // unpacked
	need Need
}

// moduleName is the name of the module in a path of modules.dep: "a/b-c.ko.xz"
// is "b_c". It is empty if that is no name.
func moduleName(p string) string {
	base := path.Base(p)
	if i := strings.Index(base, ".ko"); i >= 0 {
		base = base[:i]
	}
	if base == "." || base == ".." || base == "/" || len(base) > maxName {
		return ""
	}
	return strings.ReplaceAll(base, "-", "_")
}

// index is what is known of the modules of one directory.
type index struct {
	tree    *moduleTree
	builtin map[string]bool     // name → built in; nil without modules.builtin
	files   map[string]string   // name → path
	deps    map[string][]string // name → names, from modules.dep; missing: ask the module itself
	loaded  map[string]bool
	total   int // bytes of all modules read
	out     []foundModule
}

// newIndex reads the directory's lists.
func newIndex(t *moduleTree) (*index, error) {
	x := &index{tree: t, files: map[string]string{}, deps: map[string][]string{}, loaded: map[string]bool{}}
	b, err := t.read("modules.builtin", maxIndexFile)
	if err == nil {
		x.builtin = map[string]bool{}
		for line := range bytes.Lines(b) {
			x.builtin[moduleName(string(bytes.TrimSpace(line)))] = true
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	b, err = t.read("modules.dep", maxIndexFile)
	if err == nil && len(b) > 0 {
		x.parseDep(b)
		return x, nil
	}
	// A package that is unpacked but not installed has no modules.dep;
	// modules.order comes with it.
	b, err = t.read("modules.order", maxIndexFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for line := range bytes.Lines(b) {
		if p := string(bytes.TrimSpace(line)); p != "" {
			x.files[moduleName(p)] = p
		}
	}
	return x, nil
}

// parseDep reads modules.dep: a line is the module's path, a colon, and the paths
// of all modules that it needs, directly or not, the last to be loaded first.
func (x *index) parseDep(b []byte) {
	for line := range bytes.Lines(b) {
		file, rest, ok := strings.Cut(string(bytes.TrimSpace(line)), ":")
		if !ok || file == "" {
			continue
		}
		name := moduleName(file)
		x.files[name] = file
		deps := []string{}
		for d := range strings.FieldsSeq(rest) {
			deps = append(deps, moduleName(d))
		}
		x.deps[name] = deps
	}
}

// missingError is the error of add for a module that the place does not have.
type missingError struct{ module string }

func (e *missingError) Error() string { return "no module " + e.module }

// add appends the module and, before it, what it depends on.
func (x *index) add(name string, need Need, depth int) error {
	name = moduleName(name)
	if x.builtin[name] || x.loaded[name] {
		return nil
	}
	if depth > maxDepth || len(x.out) >= maxModules {
		return fmt.Errorf("module %s has endless dependencies", name)
	}
	file, ok := x.files[name]
	if !ok || name == "" {
		return &missingError{name}
	}
	data, err := x.readModule(file)
	if errors.Is(err, fs.ErrNotExist) {
		return &missingError{name}
	} else if err != nil {
		return err
	}
	if x.total += len(data); x.total > maxTotal {
		return fmt.Errorf("module %s and those before it are too large together", name)
	}
	deps, known := x.deps[name]
	if !known {
		if deps, err = dependsOf(data); err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
	}
	x.loaded[name] = true
	// modules.dep has the farthest dependency last, but each also has its own
	// line, so any order of walking is right.
	for i := len(deps) - 1; i >= 0; i-- {
		if err := x.add(deps[i], need, depth+1); err != nil {
			return err
		}
	}
	x.out = append(x.out, foundModule{name, data, need})
	return nil
}

// addOptional adds a module and its dependencies, or nothing of them.
func (x *index) addOptional(name string, need Need) {
	n, loaded := len(x.out), len(x.loaded)
	if err := x.add(name, need, 0); err == nil {
		return
	}
	x.out = x.out[:n]
	if len(x.loaded) != loaded {
		clear(x.loaded)
		for _, m := range x.out {
			x.loaded[m.name] = true
		}
	}
}

// readModule reads and unpacks a module file. modules.order names the file
// without the suffix of its compression.
func (x *index) readModule(file string) ([]byte, error) {
	var err error
	for _, suffix := range []string{"", ".xz", ".zst", ".gz"} {
		if suffix != "" && strings.HasSuffix(file, suffix) {
			break
		}
		var b []byte
		if b, err = x.tree.read(file+suffix, maxModule); err == nil {
			return unpackModule(file+suffix, b)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("module file %s is missing: %w", file, err)
}

// dependsOf reads the names of the modules that a module needs from its own
// .modinfo section.
func dependsOf(data []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("it is not a kernel module: %w", err)
	}
	s := f.Section(".modinfo")
	if s == nil || s.Type == elf.SHT_NOBITS || s.Size > uint64(len(data)) {
		return nil, errors.New("it is not a kernel module: it has no .modinfo section")
	}
	b, err := s.Data()
	if err != nil {
		return nil, fmt.Errorf("it is not a kernel module: %w", err)
	}
	for entry := range bytes.SplitSeq(b, []byte{0}) {
		if list, ok := bytes.CutPrefix(entry, []byte("depends=")); ok && len(list) > 0 {
			return strings.Split(string(list), ","), nil
		}
	}
	return nil, nil
}
