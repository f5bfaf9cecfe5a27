package initrd

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"
)

// Config is what [Build] needs to know.
type Config struct {
	// Release is the kernel's release, as its image says.
	Release string
	// Kernel is the kernel's file name, for error sentences.
	Kernel string
	// Places are looked through in this order; the first that has all the
	// modules is used.
	Places []Place
	// Modules are wanted in the guest, in the order of their loading.
	Modules []Module
	// BuiltIn, if set, searches a kernel without modules for Module.Driver.
	// known is false if it cannot tell.
	BuiltIn func(driver string) (found, known bool)
	// Root is the root file system.
	Root Root
	// CommandLine is the kernel command line: init= and MODULE.PARAMETER= in
	// it are honoured.
	CommandLine string
	// Warn, if set, gets what does not prevent a boot.
	Warn func(string)
	// Credentials, if any, make an initial RAM disk necessary in any case.
	Credentials []Credential
}

// Image is an initial RAM disk: an uncompressed newc archive.
type Image struct {
	*bytes.Reader
	// Modules are the names of the modules in it, in the order of loading.
	Modules []string
}

// Build makes the initial RAM disk, or returns nil if the kernel needs none.
// The error names the missing module, the kernel and the places searched.
func Build(c Config) (*Image, error) {
	if c.Release == "" || strings.ContainsAny(c.Release, "/\x00") || c.Release[0] == '.' {
		return nil, fmt.Errorf("the kernel %s does not say its version, so its modules cannot be found; give an initrd (--initrd=)", c.Kernel)
	}
	mods, place, err := c.findModules()
	if err != nil || !worthwhile(mods, place) && len(c.Credentials) == 0 {
		return nil, err
	}
	return c.archive(mods)
}

// worthwhile reports whether modules from a place make an initial RAM disk.
func worthwhile(mods []foundModule, from Place) bool {
	for _, m := range mods {
		if m.need != Extra || !from.Guest {
			return true
		}
	}
	return false
}

// findModules collects the modules that are not built in, with their
// dependencies, from the first place that has them all.
func (c *Config) findModules() ([]foundModule, Place, error) {
	missing, found := "", false // the first module missing in the first place that has the release
	for _, p := range c.Places {
		mods, err := c.modulesFrom(p)
		if err == nil {
			return mods, p, nil
		}
		var miss *missingError
		if errors.As(err, &miss) {
			if !found {
				missing, found = miss.module, true
			}
			continue
		}
		if !isAbsent(err) {
			return nil, p, fmt.Errorf("modules of kernel %s in %s: %w", c.Release, p.describe(c.Release), err)
		}
	}
	if !found {
		name, known := c.firstNotBuiltIn()
		if name == "" && known {
			if c.Warn != nil {
				c.Warn(fmt.Sprintf("the modules of kernel %s were not found in %s: the guest may lack drivers, such as those of vsock and the power button", c.Release, c.placeList()))
			}
			return nil, Place{}, nil
		}
		missing = name
	}
	return nil, Place{}, fmt.Errorf("kernel %s (%s) needs the module %s, which was not found in %s; install the kernel's modules there or give an initrd (--initrd=)",
		c.Kernel, c.Release, missing, c.placeList())
}

// firstNotBuiltIn searches the kernel itself. known is false if that is not possible.
func (c *Config) firstNotBuiltIn() (name string, known bool) {
	for _, m := range c.Modules {
		if m.Need != Required {
			continue
		}
		if found, known := c.builtIn(m); !found {
			return m.Name, known
		}
	}
	return "", true
}

// builtIn searches the kernel itself for the module. known is false if that is
// not possible.
func (c *Config) builtIn(m Module) (found, known bool) {
	if c.BuiltIn == nil || m.Driver == "" {
		return false, false
	}
	return c.BuiltIn(m.Driver)
}

// modulesFrom collects the modules from one place.
func (c *Config) modulesFrom(p Place) ([]foundModule, error) {
	t, err := openTree(p, c.Release)
	if err != nil {
		return nil, err
	}
	defer t.close()
	x, err := newIndex(t)
	if err != nil {
		return nil, err
	}
	for _, m := range c.Modules {
		if m.Need != Required {
			x.addOptional(m.Name, m.Need)
			continue
		}
		err := x.add(m.Name, Required, 0)
		var miss *missingError
		if errors.As(err, &miss) && miss.module == moduleName(m.Name) && x.builtin == nil {
			if found, _ := c.builtIn(m); found {
				continue // the list of such modules may be in another package than the modules
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return x.out, nil
}

// placeList names all places in a sentence.
func (c *Config) placeList() string {
	var names []string
	for _, p := range c.Places {
		if name := p.describe(c.Release); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return "any place"
	}
	return strings.Join(names, ", ")
}

// archive packs the modules and the first program.
func (c *Config) archive(mods []foundModule) (*Image, error) {
	params := moduleParams(c.CommandLine)
	img := &Image{}
	boot := make([]bootModule, len(mods))
	for i, m := range mods {
		boot[i] = bootModule{m.name, params[m.name], m.need == Required}
		img.Modules = append(img.Modules, m.name)
	}
	inits, explicit := fallbackInits, false
	if path := parameter(c.CommandLine, "init"); path != "" {
		inits, explicit = []string{path}, true
	}
	program := firstProgram(boot, c.Root, c.Credentials, inits, explicit)
	records := []cpio.Record{
		cpio.Directory("dev", 0o755),
		cpio.CharDev("dev/console", 0o600, 5, 1),
		cpio.Directory("root", 0o755),
		cpio.Directory("sys", 0o755),
		cpio.Directory("m", 0o700),
		cpio.StaticFile("init", string(program), 0o700),
	}
	for _, m := range mods {
		r := cpio.StaticFile(strings.TrimPrefix(moduleDir, "/")+m.name, "", 0o600)
		r.FileSize = uint64(len(m.data))
		r.ReaderAt = bytes.NewReader(m.data)
		records = append(records, r)
	}
	records = append(records, credentialRecords(c.Credentials)...)
	out, err := pack(records)
	if err != nil {
		return nil, err
	}
	img.Reader = bytes.NewReader(out)
	return img, nil
}
