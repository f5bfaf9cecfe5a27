package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/therootcompany/xz"
	"github.com/u-root/u-root/pkg/cpio"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// environment is what the cases share.
type environment struct {
	ctx      context.Context
	dir      string // temporary
	gvmspawn string // the binary under measurement
	only     *regexp.Regexp
	log      io.Writer
	host     host
	made     map[string]string // what was built already
	closers  []func()          // undone in reverse order
}

func newEnvironment(ctx context.Context, binary string, log io.Writer) (*environment, error) {
	dir, err := os.MkdirTemp("", "gvmspawn-bench-")
	if err != nil {
		return nil, err
	}
	e := &environment{ctx: ctx, dir: dir, gvmspawn: binary, log: log, made: map[string]string{}}
	e.host = host{dir: dir}
	if binary == "" {
		e.gvmspawn, err = e.build("gvmspawn", "./cmd/gvmspawn")
	} else {
		e.gvmspawn, err = filepath.Abs(binary)
	}
	if err != nil {
		e.close()
		return nil, err
	}
	return e, nil
}

func (e *environment) close() {
	for i := len(e.closers) - 1; i >= 0; i-- {
		e.closers[i]()
	}
	_ = os.RemoveAll(e.dir)
}

// onClose has f run at the end.
func (e *environment) onClose(f func()) { e.closers = append(e.closers, f) }

// say tells the progress.
func (e *environment) say(format string, args ...any) { fmt.Fprintf(e.log, format+"\n", args...) }

// build builds a command the way it is shipped, once.
func (e *environment) build(name, pkg string) (string, error) {
	out := filepath.Join(e.dir, name)
	if e.made[name] != "" {
		return out, nil
	}
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/gvmspawn/gvmspawn").Output()
	if err != nil {
		return "", fmt.Errorf("run it in a checkout of gvmspawn: %w", err)
	}
	cmd := exec.CommandContext(e.ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, pkg)
	cmd.Dir = strings.TrimSpace(string(root))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w: %s", pkg, err, msg)
	}
	e.made[name] = out
	return out, nil
}

// host lets the helpers of the tests serve a program, too: it has what they use
// of testing.TB. Their failures and skips are panics with a hostPanic.
type host struct {
	testing.TB
	dir string
}

type hostPanic string

func (h host) Helper() {}

func (h host) Logf(string, ...any) {}

func (h host) Fatal(args ...any) { panic(hostPanic(fmt.Sprint(args...))) }

func (h host) Fatalf(f string, args ...any) { panic(hostPanic(fmt.Sprintf(f, args...))) }

func (h host) Skipf(f string, args ...any) { panic(hostPanic(fmt.Sprintf(f, args...))) }

// TempDir is a new directory under the environment's.
func (h host) TempDir() string {
	dir, err := os.MkdirTemp(h.dir, "")
	if err != nil {
		h.Fatal(err)
	}
	return dir
}

// initrd makes an initramfs of the guest program, busybox and a kernel's
// modules with what they depend on.
func (e *environment) initrd(name string, kernel guesttest.Kernel, modules ...string) (string, error) {
	return e.toolInitrd(name, kernel, nil, modules...)
}

// toolInitrd is initrd with a program of Debian's, unless t is nil.
func (e *environment) toolInitrd(name string, kernel guesttest.Kernel, t *tool, modules ...string) (string, error) {
	guest, err := e.build("guest", "./bench/internal/guest")
	if err != nil {
		return "", err
	}
	files, err := moduleFiles(kernel, modules)
	if err != nil {
		return "", err
	}
	a := archive{}
	a.records = append(a.records, cpio.Directory("dev", 0o755), cpio.CharDev("dev/console", 0o600, 5, 1),
		cpio.Directory("bin", 0o755), cpio.Directory("lib", 0o755))
	a.file("init", guest)
	a.file("bin/busybox", guesttest.Busybox(e.host))
	if t != nil {
		if err := t.pack(&a); err != nil {
			return "", err
		}
	}
	var list strings.Builder
	for _, f := range files {
		to := "lib/" + strings.TrimSuffix(filepath.Base(f), ".xz")
		a.module(to, f)
		fmt.Fprintln(&list, "/"+to)
	}
	a.records = append(a.records, cpio.StaticFile("modules", list.String(), 0o644))
	return a.write(filepath.Join(e.dir, name+".cpio"))
}

// archive gathers the records of an initramfs; the first error sticks.
type archive struct {
	records []cpio.Record
	err     error
}

func (a *archive) directory(name string) {
	a.records = append(a.records, cpio.Directory(name, 0o755))
}

func (a *archive) file(name, from string) {
	data, err := os.ReadFile(from)
	if err != nil && a.err == nil {
		a.err = err
	}
	a.records = append(a.records, cpio.StaticFile(name, string(data), 0o755))
}

// module adds a module, uncompressed.
func (a *archive) module(name, from string) {
	data, err := readModule(from)
	if err != nil && a.err == nil {
		a.err = err
	}
	a.records = append(a.records, cpio.StaticFile(name, string(data), 0o644))
}

// readModule is a module's ELF file.
func readModule(from string) ([]byte, error) {
	data, err := os.ReadFile(from)
	if err == nil && strings.HasSuffix(from, ".xz") {
		var r io.Reader
		if r, err = xz.NewReader(bytes.NewReader(data), 0); err == nil {
			data, err = io.ReadAll(r)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", from, err)
	}
	return data, nil
}

func (a *archive) write(path string) (string, error) {
	if a.err != nil {
		return "", a.err
	}
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	w := cpio.Newc.Writer(f)
	if err := cpio.WriteRecords(w, a.records); err != nil {
		return "", err
	}
	return path, cpio.WriteTrailer(w)
}

// moduleFiles lists the files of modules, dependencies first. A module that is
// built into the kernel has none.
func moduleFiles(k guesttest.Kernel, names []string) ([]string, error) {
	base := filepath.Join(k.Dir, "lib/modules", k.Version)
	deps, err := os.ReadFile(filepath.Join(base, "modules.dep"))
	if err != nil {
		return nil, err
	}
	var files []string
	for _, name := range names {
		for line := range strings.Lines(string(deps)) {
			path, needs, _ := strings.Cut(strings.TrimSpace(line), ":")
			stem, _, _ := strings.Cut(filepath.Base(path), ".")
			if strings.ReplaceAll(stem, "-", "_") != name {
				continue
			}
			list := strings.Fields(needs)
			for i := len(list) - 1; i >= 0; i-- {
				files = append(files, filepath.Join(base, list[i]))
			}
			files = append(files, filepath.Join(base, path))
		}
	}
	return files, nil
}
