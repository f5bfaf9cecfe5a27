package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/arg"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/bootentry"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/firmware"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/getopt"
	"github.com/gvmspawn/gvmspawn/firmware/uefi"
	"github.com/gvmspawn/gvmspawn/vmm"
)

// Words of --firmware=, besides a path.
const (
	firmwareAuto     = "auto"
	firmwareNone     = "none"
	firmwareUEFI     = "uefi"
	firmwareBIOS     = "bios"
	firmwareList     = "list"
	firmwareDescribe = "describe"
)

func (s *settings) setFirmware(v string) error {
	switch v {
	case "":
		s.firmware = firmwareAuto
		return nil
	case firmwareAuto, firmwareNone, firmwareUEFI, firmwareBIOS:
		s.firmware = v
		return nil
	case firmwareList:
		s.list = "firmware"
		return getopt.ErrStop
	case firmwareDescribe:
		s.describe = true // of what later options ask for, too
		return nil
	}
	path, err := arg.ExplicitPath(v)
	if err == nil {
		s.firmware = path
	}
	return err
}

func (s *settings) setFirmwareFeatures(v string) error {
	if v == "list" {
		s.list = "firmware-features"
		return getopt.ErrStop
	}
	return s.features.Set(v)
}

func (s *settings) setVariables(v string) error {
	switch t, err := arg.ParseTristate(v); {
	case v == "off" || v == "" || err == nil && t == arg.No:
		s.variables, s.variablesPath = firmware.KeepOff, ""
		return nil
	case err == nil: // yes means auto
		s.variables, s.variablesPath = firmware.KeepAuto, ""
		return nil
	}
	path, err := arg.ExplicitPath(v)
	if err == nil {
		s.variables, s.variablesPath = firmware.KeepFile, path
	}
	return err
}

// wantsFirmware returns the option that cannot be had without firmware, or "".
func (s *settings) wantsFirmware() string {
	if s.firmware != firmwareAuto && s.firmware != firmwareNone {
		return "--firmware="
	}
	return s.wantsUEFI()
}

// wantsUEFI returns the option that only UEFI firmware knows, or "".
func (s *settings) wantsUEFI() string {
	switch {
	case s.features.Required():
		return "--secure-boot= or --firmware-features="
	case s.template != "":
		return "--efi-nvram-template="
	case s.variablesPath != "":
		return "--efi-nvram-state="
	}
	return ""
}

func (s *settings) checkFirmware() error {
	if o := s.wantsUEFI(); o != "" && (s.firmware == firmwareNone || s.firmware == firmwareBIOS) {
		return fmt.Errorf("options --firmware=%s and %s cannot be combined", s.firmware, o)
	}
	if s.deterministic && s.wantsFirmware() != "" {
		return errors.New("options --deterministic and --firmware= cannot be combined")
	}
	return nil
}

// chooseFirmware is the descriptor that the options ask for. One that the user names
// must have the features that are required; what is excluded is for the search.
func (s *settings) chooseFirmware() (*firmware.Descriptor, error) {
	if s.firmware != firmwareAuto && s.firmware != firmwareUEFI {
		d, err := firmware.LoadFor(s.firmware)
		if err == nil {
			if err = s.features.Lacking(d.Features); err != nil {
				err = fmt.Errorf("%s %w", s.firmware, err)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("option --firmware: %w", pathError(err))
		}
		return d, nil
	}
	return firmware.Find(firmware.Directories(), s.features)
}

// addFirmware gives the machine its firmware and the variables of it.
func (p *plan) addFirmware() error {
	if p.s.firmware == firmwareBIOS {
		return p.addBIOS()
	}
	d, err := p.s.chooseFirmware()
	if err != nil {
		return err
	}
	p.cfg.Log.Debug("Chose a firmware", "descriptor", d.Path, "executable", d.Mapping.Executable.Path)
	code, err := p.firmwareCode(d.Mapping.Executable)
	if err != nil {
		return err
	}
	variables, err := p.firmwareVariables(d.Mapping.Template)
	if err != nil {
		return err
	}
	p.cfg.Firmware = &vmm.Firmware{Code: code, Vars: variables, SMM: d.RequiresSMM(), Log: &firmwareLog{log: p.cfg.Log}}
	return nil
}

// biosPaths are where distributions have SeaBIOS's image for machines with 256 KiB
// of it.
var biosPaths = []string{"/usr/share/seabios/bios-256k.bin", "/usr/share/qemu/bios-256k.bin"}

// addBIOS gives the machine a BIOS, which keeps no variables.
func (p *plan) addBIOS() error {
	switch {
	case p.image.Directory:
		return errors.New("a BIOS cannot start a directory, only the boot loader of a disk image (--image=)")
	case p.s.linux != "":
		return errors.New("options --firmware=bios and --linux= cannot be combined, use --firmware=uefi, or none")
	}
	for _, path := range biosPaths {
		if readable(path) == nil {
			p.cfg.Firmware = &vmm.Firmware{Code: path, BIOS: true, Log: &firmwareLog{log: p.cfg.Log}}
			return nil
		}
	}
	return fmt.Errorf("no BIOS was found (%s): install SeaBIOS", strings.Join(biosPaths, ", "))
}

// firmwareCode is the path of the code as a raw image.
func (p *plan) firmwareCode(image firmware.Image) (string, error) {
	if image.Format != "qcow2" {
		return image.Path, readable(image.Path)
	}
	b, err := firmware.ReadImage(image.Path, opener(image.Format))
	if err != nil {
		return "", fmt.Errorf("cannot read the firmware: %w", pathError(err))
	}
	return p.anonymous("firmware", b)
}

// anonymous is the path of a file in memory that the plan holds.
func (p *plan) anonymous(name string, content []byte) (string, error) {
	f, err := bootentry.ToMemory(name, bytes.NewReader(content))
	if err != nil {
		return "", err
	}
	return p.hold(f), nil
}

// firmwareVariables is the path of the machine's variable store, made from the
// firmware's template where that is needed, or "" if the firmware has none.
func (p *plan) firmwareVariables(template firmware.Image) (string, error) {
	s := p.s
	if s.template != "" {
		template = firmware.Image{Path: s.template, Format: "raw"}
	}
	if template.Path == "" {
		if s.variablesPath != "" {
			return "", errors.New("option --efi-nvram-state: this firmware names no template of its variables, give one with --efi-nvram-template=")
		}
		return "", nil
	}
	initial, err := firmware.ReadTemplate(template.Path, opener(template.Format))
	if err != nil {
		return "", err
	}
	path := s.variablesPath
	if s.variables == firmware.KeepAuto && !s.ephemeral {
		path = p.statePath()
	}
	if path == "" {
		return p.anonymous("efi-variables", initial)
	}
	return path, firmware.OpenState(path, initial)
}

// statePath is where the variables of the image are kept by themselves: beside
// it, but not beside device nodes, whose directory does not last.
func (p *plan) statePath() string {
	if fi, err := os.Stat(p.image.Path); err != nil || !fi.IsDir() && !fi.Mode().IsRegular() || p.image.Path == "/" {
		p.cfg.Log.Warn("The EFI variables are not kept, say where with --efi-nvram-state=", "image", p.image.Path)
		return ""
	}
	return firmware.StatePath(p.image.Path)
}

// opener opens an image of the firmware in its format.
func opener(format string) func(string) (io.ReadCloser, error) {
	if format != "qcow2" {
		return func(path string) (io.ReadCloser, error) { return os.Open(path) }
	}
	return func(path string) (io.ReadCloser, error) {
		d, err := vmm.OpenDisk(vmm.Disk{Path: path, Format: vmm.FormatQcow2})
		if err != nil {
			return nil, err
		}
		return struct {
			io.Reader
			io.Closer
		}{io.NewSectionReader(d, 0, d.Size()), d}, nil
	}
}

// firmwareLog turns what firmware writes to its debug port into messages, whole
// lines of bounded length.
type firmwareLog struct {
	log  *slog.Logger
	line []byte
}

func (l *firmwareLog) Write(b []byte) (int, error) {
	const longest = 512
	for _, c := range b {
		if c != '\n' && len(l.line) < longest {
			l.line = append(l.line, c)
			continue
		}
		l.log.Debug("firmware: " + arg.Printable(strings.TrimRight(string(l.line), "\r")))
		l.line = l.line[:0]
	}
	return len(b), nil
}

// firmwareKernel decides what firmware starts: a given kernel, one found in a
// directory, else what it finds itself on the disk or in the directory.
func (p *plan) firmwareKernel() error {
	if p.s.linux != "" {
		return p.givenToFirmware()
	}
	if !p.image.Directory {
		return nil
	}
	k, err := p.fromDirectory(bootentry.How{Whole: true})
	if errors.Is(err, bootentry.ErrNone) {
		p.cfg.Firmware.AnyOrder = true // the directory's own boot loader
		return nil
	}
	if err == nil {
		p.unified = k.UKI
	}
	return p.discovered(k, err)
}

// givenToFirmware uses --linux= and --initrd= with firmware.
func (p *plan) givenToFirmware() error {
	if err := p.readableKernel(); err != nil {
		return err
	}
	kind, err := bootentry.Inspect(p.s.linux)
	switch {
	case err != nil:
		return pathError(err)
	case kind == bootentry.NotPE:
		return fmt.Errorf("option --linux: %s has no EFI stub, so firmware cannot start it; use --firmware=none", p.s.linux)
	}
	p.unified = kind == bootentry.Unified
	p.cfg.Boot.Kernel, p.cfg.Boot.Initrds = p.s.linux, p.s.initrds
	return nil
}

// byStub reports whether the kernel command line goes to systemd's EFI stub or
// boot loader in SMBIOS strings, as the kernel is not started by us.
func (p *plan) byStub() bool {
	return p.cfg.Firmware != nil && (p.unified || p.cfg.Boot.Kernel == "")
}

// stubStrings are the SMBIOS type 11 strings that carry a command line to
// systemd-stub(7) and systemd-boot(7).
func stubStrings(line string) []string {
	return []string{"io.systemd.stub.kernel-cmdline-extra=" + line, "io.systemd.boot.kernel-cmdline-extra=" + line}
}

// describeFirmware prints the descriptor that a machine would be started with.
func (c *command) describeFirmware(s *settings) error {
	if s.firmware == firmwareBIOS {
		return errors.New("a BIOS has no descriptor")
	}
	d, err := s.chooseFirmware()
	if err != nil {
		return err
	}
	if d.Text == nil {
		return fmt.Errorf("%s is an image and has no descriptor", d.Path)
	}
	_, err = fmt.Fprintf(c.stdout, "%s\n", bytes.TrimSpace(d.Text))
	return err
}

// firmware is the verb about firmware and what it keeps.
func (c *command) firmware(args []string) (int, error) {
	switch {
	case len(args) == 1 && args[0] == firmwareList:
		return 0, c.listFirmware()
	case len(args) == 2 && args[0] == "vars":
		return 0, c.listVariables(args[1])
	}
	return exitFailure, errors.New("expected 'firmware list' or 'firmware vars PATH'")
}

func (c *command) listFirmware() error {
	for _, p := range firmware.List(firmware.Directories()) {
		if _, err := fmt.Fprintln(c.stdout, p); err != nil {
			return err
		}
	}
	return nil
}

// listVariables prints the EFI variables in a file.
func (c *command) listVariables(path string) error {
	b, err := firmware.ReadImage(path, opener("raw"))
	if err != nil {
		return pathError(err)
	}
	list, err := uefi.ReadStore(b)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	w := tabwriter.NewWriter(c.stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tVENDOR\tATTRIBUTES\tBYTES\tVALUE")
	for i := range list {
		v := &list[i]
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\n", arg.Printable(v.Name), v.VendorName(), v.Attributes, len(v.Data), v.Describe())
	}
	return w.Flush()
}
