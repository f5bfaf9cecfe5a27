package main

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/arg"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/getopt"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/sshkey"
	"github.com/gvmspawn/gvmspawn/vmm"
)

// Words of options, for parsing and completion.
var (
	boolWords      = []string{"yes", "no"}
	ringWords      = []string{"split", "packed"}
	transportWords = []string{"pci", "mmio"}
	tristateWords  = []string{"yes", "no", "auto"}
	consoleWords   = []string{"interactive", "read-only", "native", "headless", "gui"}
)

// instead sets a boolean and ends parsing: something else is to be done than
// running a machine.
func instead(to *bool) func(string) error {
	return func(string) error { *to = true; return getopt.ErrStop }
}

// flag sets a boolean when the option is given.
func flag(to *bool) func(string) error {
	return func(string) error { *to = true; return nil }
}

// value stores what parse makes of the argument.
func value[T any](to *T, parse func(string) (T, error)) func(string) error {
	return func(s string) (err error) {
		v, err := parse(s)
		if err == nil {
			*to = v
		}
		return err
	}
}

// list appends what parse makes of the argument; an empty one clears the list.
func list[T any](to *[]T, parse func(string) (T, error)) func(string) error {
	return func(s string) error {
		if s == "" {
			*to = nil
			return nil
		}
		v, err := parse(s)
		if err == nil {
			*to = append(*to, v)
		}
		return err
	}
}

// word stores one of the words.
func word(to *string, words []string) func(string) error {
	return func(s string) error {
		if err := arg.OneOf(s, words); err != nil {
			return err
		}
		*to = s
		return nil
	}
}

// valid parses nothing but checks.
func valid(check func(string) error) func(string) (string, error) {
	return func(s string) (string, error) { return s, check(s) }
}

// unsupported refuses an option whose part of the machine does not exist yet.
func unsupported(what string) func(string) error {
	return func(string) error { return errors.New(what + " not supported yet") }
}

// requiredPath is a path that may not be empty.
func requiredPath(s string) (string, error) {
	if s == "" {
		return "", errors.New("the path is empty")
	}
	return arg.Path(s)
}

// optionalPath is a path with an explicit beginning; an empty one resets the option.
func optionalPath(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	return arg.ExplicitPath(s)
}

// table is every option, grouped as in --help.
func (s *settings) table() getopt.Table {
	return getopt.Table{
		{Title: "Options", Options: []getopt.Option{
			{Long: "help", Short: 'h', Help: "Show this help", Set: instead(&s.help)},
			{Long: "version", Help: "Print the version", Set: instead(&s.version)},
			{Long: "no-pager", Help: "Do not start a pager for --help", Set: flag(&s.noPager)},
			{Long: "no-ask-password", Help: "Do not ask for passwords when registering the machine", Set: flag(&s.noAskPassword)},
			{Long: "quiet", Short: 'q', Help: "Do not show status lines, only errors and warnings", Set: flag(&s.quiet)},
			{Long: "system", Help: "Use the system's service manager and machined", Set: func(string) error { s.system, s.user = true, false; return nil }},
			{Long: "user", Help: "Use the user's service manager and machined", Set: func(string) error { s.system, s.user = false, true; return nil }},
		}},
		{Title: "Image", Options: s.imageOptions()},
		{Title: "Host configuration", Options: append(s.hostOptions(), s.networkOptions()...)},
		{Title: "Execution", Options: s.executionOptions()},
		{Title: "System identity", Options: []getopt.Option{
			{Long: "machine", Short: 'M', Arg: "NAME", Help: "Name of the machine; without -D and -i also of its image in /var/lib/machines and the like", Set: s.setMachine},
			{Long: "uuid", Arg: "UUID", Help: "Set the machine's UUID, which becomes its machine ID at first boot", Set: value(&s.uuid, arg.ParseUUID)},
		}},
		{Title: "Properties", Options: s.propertyOptions()},
		{Title: "User namespacing", Options: []getopt.Option{
			{Long: "private-users", Arg: "UIDBASE[:NUIDS]", Help: "Map the guest's users from 0 on to the host's from UIDBASE on, 65536 by default", Set: s.setPrivateUsers},
		}},
		{Title: "Mounts", Options: s.mountOptions()},
		{Title: "Integration", Options: s.integrationOptions()},
		{Title: "Input/Output", Options: []getopt.Option{
			{Long: "console", Arg: "MODE", Values: consoleWords, Help: "What the console is connected with: interactive, read-only, native (with a monitor on Ctrl-a c) or headless", Set: s.setConsole},
			{Long: "qemu-gui", Hidden: true, Set: func(string) error { return s.setConsole("gui") }},
			{Long: "console-transport", Arg: "DEVICE", Values: []string{"virtio", "serial"}, Help: "Which device the console is: virtio (hvc0) or serial (ttyS0)", Set: word(&s.transport, []string{"virtio", "serial"})},
			{Long: "background", Arg: "COLOR", Help: "Background of the console as SGR parameters, such as 48;2;0;40;0; empty for none", Set: s.setBackground},
		}},
		{Title: "Credentials", Options: []getopt.Option{
			{Long: "set-credential", Arg: "ID:VALUE", Help: "Pass a credential to the guest; C escapes are understood", Set: s.credentials.SetArgument},
			{Long: "load-credential", Arg: "ID:PATH", Help: "Pass a credential from a file, a stream socket or by name", Files: "file", Set: func(v string) error { return s.credentials.LoadArgument(v, "") }},
		}},
	}
}

func (s *settings) imageOptions() []getopt.Option {
	return []getopt.Option{
		{Long: "directory", Short: 'D', Arg: "PATH", Files: "dir", Help: "Directory with the root file system; the current one by default", Set: value(&s.directory, arg.Path)},
		{Long: "image", Short: 'i', Arg: "PATH", Files: "file", Help: "Disk image or block device with the root file system", Set: value(&s.image, arg.Path)},
		{Long: "ephemeral", Short: 'x', Help: "Throw away all changes to directory, image and drives", Set: flag(&s.ephemeral)},
		{Long: "image-format", Arg: "FORMAT", Values: arg.DiskFormats, Help: "Format of the image: raw or qcow2", Set: word(&s.imageFormat, arg.DiskFormats)},
		{Long: "image-disk-type", Arg: "TYPE", Values: arg.DiskTypes, Help: "How disks are attached: virtio-blk, virtio-scsi, nvme, scsi-cd or pmem", Set: word(&s.diskType, arg.DiskTypes)},
		{Long: "discard-disk", Arg: "BOOL", Values: boolWords, Help: "Let the guest's discard punch holes into images", Set: value(&s.discard, arg.Bool)},
		{Long: "disk-cache", Own: true, Arg: "MODE", Values: arg.DiskCaches, Help: "How the host caches disks: writeback, none (direct I/O, raw images) or unsafe (never flushed)", Set: word(&s.diskCache, arg.DiskCaches)},
		{Long: "disk-backing", Own: true, Arg: "PLACE", Values: arg.DiskBackings, Help: "Where qcow2 images may have backing files: beside (in or below their directory) or anywhere", Set: word(&s.diskBacking, arg.DiskBackings)},
		{Long: "grow-image", Short: 'G', Arg: "BYTES", Help: "Grow the image to this size if it is smaller", Set: value(&s.growImage, optionalSize)},
		{Long: "extra-drive", Arg: "[FORMAT:][TYPE:]PATH", Files: "file", Help: "Attach another disk", Set: list(&s.extraDrives, arg.ParseDrive)},
		{Long: "bind-volume", Arg: "PROVIDER:VOLUME", Help: "Attach a storage volume (not supported yet)", Set: unsupported("storage providers are")},
	}
}

func (s *settings) hostOptions() []getopt.Option {
	return []getopt.Option{
		{Long: "cpus", Aliases: []string{"qemu-smp"}, Arg: "N[,sockets=N][,cores=N][,threads=N]", Help: fmt.Sprintf("Number of CPUs, 1 to %d, and how they are arranged", arg.MaxCPUs), Set: value(&s.cpus, arg.ParseCPUs)},
		{Long: "ram", Aliases: []string{"qemu-mem"}, Arg: "BYTES[:MAXBYTES[:SLOTS]]", Help: "Size of the memory, 2G by default, and the most that it can be given while it runs", Set: value(&s.ram, parseRAM)},
		{Long: "kvm", Aliases: []string{"qemu-kvm"}, Arg: "BOOL", Values: tristateWords, Help: "Use KVM; auto takes the software CPU where KVM cannot run the guest", Set: value(&s.kvm, arg.ParseTristate)},
		{Long: "vsock", Aliases: []string{"qemu-vsock"}, Arg: "BOOL", Values: tristateWords, Help: "Connect the guest by vsock", Set: value(&s.vsock, arg.ParseTristate)},
		{Long: "vsock-cid", Arg: "CID", Help: "Context ID of the guest; derived from the name by default", Set: value(&s.vsockCID, arg.CID)},
		{Long: "tpm", Arg: "BOOL", Values: tristateWords, Help: "Give the machine a TPM by swtpm; auto does so if that is installed", Set: value(&s.tpm, arg.ParseTristate)},
		{Long: "tpm-state", Arg: "PATH", Files: "file", Help: "Directory with the TPM's state: a path, auto for IMAGE.tpmstate or off for none that lasts", Set: s.setTPMState},
	}
}

func (s *settings) networkOptions() []getopt.Option {
	return []getopt.Option{
		{Long: "network-tap", Short: 'n', Help: "Connect the guest by a TAP device of the host", Set: func(string) error { s.networkTAP, s.networkUser = true, false; return nil }},
		{Long: "network-user-mode", Help: "Connect the guest by a network stack in this program, which needs no privileges", Set: func(string) error { s.networkTAP, s.networkUser = false, true; return nil }},
		{Long: "port", Own: true, Arg: "[PROTO:][ADDR:]HOST[:GUEST]", Help: "With --network-user-mode, publish a port of the guest on the host", Set: list(&s.ports, arg.ParseForward)},
	}
}

func (s *settings) executionOptions() []getopt.Option {
	return []getopt.Option{
		{Long: "linux", Arg: "PATH", Files: "file", Help: "Kernel to boot: bzImage, vmlinux or unified kernel image", Set: value(&s.linux, arg.Path)},
		{Long: "initrd", Arg: "PATH", Files: "file", Help: "Initial RAM disk; may be given several times", Set: list(&s.initrds, requiredPath)},
		{Long: "firmware", Arg: "WORD|PATH", Values: []string{firmwareAuto, firmwareNone, firmwareUEFI, firmwareBIOS, firmwareList, firmwareDescribe}, Files: "file", Help: "Firmware: uefi, bios, none, auto, the path of a descriptor, or list or describe to show it", Set: s.setFirmware},
		{Long: "firmware-features", Arg: "FEATURE,…", Help: "Features that the firmware must have, or with ~ must not have, or list to show them", Set: s.setFirmwareFeatures},
		{Long: "secure-boot", Arg: "BOOL", Values: tristateWords, Help: "Whether the firmware must support Secure Boot", Set: func(v string) error { return s.features.SetSecureBoot(v) }},
		{Long: "efi-nvram-template", Arg: "PATH", Files: "file", Help: "Initial EFI variables instead of the firmware's own", Set: value(&s.template, optionalPath)},
		{Long: "efi-nvram-state", Arg: "PATH", Files: "file", Help: "Where EFI variables are kept: auto (beside the image), off or a path", Set: s.setVariables},
		{Long: "smbios11", Short: 's', Arg: "STRING", Help: "Pass an SMBIOS type 11 string to the guest", Set: list(&s.smbios11, valid(arg.UTF8))},
		{Long: "coco", Aliases: []string{"confidential-computing"}, Arg: "TYPE", Values: []string{"no", "sev-snp", "tdx"}, Help: "Confidential computing (not supported yet)", Set: setCoCo},
		{Long: "kaslr", Own: true, Arg: "BOOL", Values: boolWords, Help: "Let the kernel choose its address, at the price of a slower start", Set: value(&s.kaslr, arg.Bool)},
		{Long: "deterministic", Own: true, Help: "Run the same instructions on each start: software CPU, one CPU, time by instructions", Set: flag(&s.deterministic)},
		{Long: "seed", Own: true, Arg: "NUMBER", Help: "With --deterministic, the seed of all randomness", Set: value(&s.seed, parseSeed)},
		{Long: "gdb", Own: true, Arg: "PORT|unix:PATH", Optional: true, Help: "Start stopped and wait for gdb at a port of the loopback interface, 1234 by default, or at a socket; who connects controls the machine", Set: value(&s.gdb, parseGDB)},
		{Long: "dax", Own: true, Arg: "BYTES", Help: "Size of the window through which directories are mapped from the host's page cache, a power of two; 0 for none", Set: value(&s.dax, parseDAX)},
		{Long: "virtio-transport", Own: true, Arg: "TYPE", Values: transportWords, Help: "How virtio devices are attached: pci, or mmio for kernels without PCI", Set: word(&s.virtio, transportWords)},
		{Long: "virtio-ring", Own: true, Arg: "TYPE", Values: ringWords, Help: "Layout of virtio's queues: split or packed", Set: word(&s.ring, ringWords)},
		{Long: "stop-timeout", Own: true, Arg: "SECONDS", Help: "How long a guest may take to power off before it is killed, 90 by default; 0 for ever", Set: value(&s.stopTimeout, parseSeconds)},
	}
}

func (s *settings) propertyOptions() []getopt.Option {
	return []getopt.Option{
		{Long: "register", Arg: "BOOL", Values: tristateWords, Help: "Register the machine with systemd-machined", Set: value(&s.register, arg.ParseTristate)},
		{Long: "keep-unit", Help: "Do not make a scope for the machine, stay in the unit we run in", Set: flag(&s.keepUnit)},
		{Long: "slice", Short: 'S', Arg: "SLICE", Help: "Slice of the machine's scope, machine.slice by default", Set: value(&s.slice, arg.SliceName)},
		{Long: "property", Arg: "NAME=VALUE", Help: "Property of the machine's scope, as for systemctl set-property", Set: list(&s.properties, arg.Property)},
	}
}

func (s *settings) mountOptions() []getopt.Option {
	bind := func(readOnly bool) func(string) (arg.Bind, error) {
		return func(v string) (arg.Bind, error) { return arg.ParseBind(v, readOnly) }
	}
	return []getopt.Option{
		{Long: "bind", Arg: "SOURCE[:TARGET]", Files: "file", Help: "Mount a file or directory of the host in the guest", Set: list(&s.binds, bind(false))},
		{Long: "bind-ro", Arg: "SOURCE[:TARGET]", Files: "file", Help: "The same, read-only", Set: list(&s.binds, bind(true))},
		{Long: "bind-user", Arg: "NAME", Help: "Let a user of the host log in to the guest, with the home directory", Set: list(&s.bindUsers, valid(arg.UserName))},
		{Long: "bind-user-shell", Arg: "BOOL|PATH", Values: boolWords, Help: "Shell of such users: the guest's default, that on the host, or a path", Set: s.setUserShell},
		{Long: "bind-user-group", Arg: "GROUP", Help: "Further group of such users", Set: list(&s.bindUserGroups, valid(arg.UserName))},
	}
}

func (s *settings) integrationOptions() []getopt.Option {
	l := &s.journalLimits
	return []getopt.Option{
		{Long: "notify-ready", Arg: "BOOL", Values: boolWords, Help: "Tell the service manager that we are ready only when the guest is", Set: value(&s.notifyReady, arg.Bool)},
		{Long: "forward-journal", Arg: "PATH", Files: "file", Help: "Write the guest's journal to a file that ends in .journal, or to a directory", Set: value(&s.forwardJournal, arg.Path)},
		{Long: "forward-journal-max-use", Arg: "BYTES", Help: "Most space that the journal uses", Set: value(&l.MaxUse, arg.Size)},
		{Long: "forward-journal-keep-free", Arg: "BYTES", Help: "Space that the journal leaves free", Set: value(&l.KeepFree, arg.Size)},
		{Long: "forward-journal-max-file-size", Arg: "BYTES", Help: "Size of one of the journal's files", Set: value(&l.MaxFileSize, arg.Size)},
		{Long: "forward-journal-max-files", Arg: "N", Help: "Number of the journal's files", Set: value(&l.MaxFiles, parseCount)},
		{Long: "pass-ssh-key", Arg: "BOOL", Values: boolWords, Help: "Make an SSH key and let it into the guest", Set: value(&s.passSSHKey, arg.Bool)},
		{Long: "ssh-key-type", Arg: "TYPE", Values: sshkey.Types, Help: "Type of that key: ed25519, rsa or ecdsa", Set: word(&s.sshKeyType, sshkey.Types)},
	}
}

func (s *settings) setMachine(v string) error {
	if v != "" {
		if err := arg.MachineName(v); err != nil {
			return err
		}
	}
	s.machine = v
	return nil
}

func (s *settings) setPrivateUsers(v string) error {
	if b, err := arg.Bool(v); err == nil && !b && v != "0" {
		s.privateUsersOn = false
		return nil
	}
	r, err := arg.ParseUIDRange(v)
	if err != nil {
		return err
	}
	s.privateUsers, s.privateUsersOn = r, true
	return nil
}

func (s *settings) setUserShell(v string) error {
	b, err := arg.Bool(v)
	switch {
	case err == nil && b:
		s.bindUserShell = hostShell
	case err == nil:
		s.bindUserShell = ""
	case !path.IsAbs(v):
		return errors.New("expected yes, no or an absolute path")
	default:
		s.bindUserShell = v
	}
	s.bindUserShellSet = true
	return nil
}

func (s *settings) setConsole(v string) error {
	if v == "gui" {
		return errors.New("a graphical console is not supported yet")
	}
	return word(&s.console, consoleWords)(v)
}

func (s *settings) setBackground(v string) error {
	if err := arg.Background(v); err != nil {
		return err
	}
	s.background, s.backgroundSet = v, true
	return nil
}

func setCoCo(v string) error {
	switch v {
	case "", "no":
		return nil
	case "sev-snp", "tdx":
		return errors.New("confidential computing is not supported yet")
	}
	return errors.New("expected no, sev-snp or tdx")
}

func optionalSize(v string) (uint64, error) {
	if v == "" {
		return 0, nil
	}
	return arg.Size(v)
}

func parseRAM(v string) (arg.Memory, error) {
	m, err := arg.ParseMemory(v)
	if err == nil && max(m.Size, m.Max) > vmm.MaxRAM {
		err = fmt.Errorf("a machine can have at most %dG", uint64(vmm.MaxRAM)>>30)
	}
	return m, err
}

func parseDAX(v string) (uint64, error) {
	n, err := arg.Size(v)
	if err == nil && n != 0 && (n < 2<<20 || n&(n-1) != 0) {
		err = errors.New("expected a power of two of at least 2M, or 0")
	}
	return n, err
}

func parseSeed(v string) (uint64, error) {
	n, err := strconv.ParseUint(v, 0, 64)
	if err != nil {
		err = errors.New("expected a number of at most 64 bits")
	}
	return n, err
}

func parseCount(v string) (uint64, error) {
	n, err := strconv.ParseUint(v, 10, 31)
	if err != nil || n == 0 {
		return 0, errors.New("expected a positive number")
	}
	return n, nil
}

func parseSeconds(v string) (uint64, error) {
	n, err := strconv.ParseUint(strings.TrimSuffix(v, "s"), 10, 31)
	if err != nil {
		err = errors.New("expected a number of seconds")
	}
	return n, err
}

// parse reads the command line, without the program's name.
func (s *settings) parse(args []string) (err error) {
	if s.args, err = s.table().Parse(args); err != nil {
		if errors.Is(err, getopt.ErrStop) {
			return nil
		}
		return err
	}
	s.late = s.lateOptions(args)
	for _, a := range s.args {
		if strings.ContainsAny(a, "\x00\n") {
			return errors.New("a kernel argument contains a line break")
		}
	}
	if os.Getenv("SYSTEMD_VMSPAWN_QEMU_EXTRA") != "" {
		return errors.New("$SYSTEMD_VMSPAWN_QEMU_EXTRA is set, but there is no qemu to give it to; unset it")
	}
	return s.check()
}

// lateOptions are kernel arguments that look like options of ours: whoever
// means them so can say it with "--".
func (s *settings) lateOptions(args []string) (late []string) {
	if n := len(args) - len(s.args); n > 0 && args[n-1] == "--" {
		return nil
	}
	t := s.table()
	for _, a := range s.args {
		if t.Knows(a) {
			late = append(late, a)
		}
	}
	return late
}

// warnLate says of an option that it came too late to be one.
func warnLate(option string) string {
	return fmt.Sprintf("%s comes after the first kernel argument, so it is one, too; put it before, or \"--\" before the kernel arguments", arg.Printable(option))
}
