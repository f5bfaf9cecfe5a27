package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/nsresource"
	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// TestMain makes the test binary the program itself when it is asked to be.
func TestMain(m *testing.M) {
	if mode := os.Getenv("FAKE_SWTPM"); mode != "" {
		fakeSwtpm(mode)
		os.Exit(0)
	}
	if os.Getenv("GVMSPAWN_TEST_MAIN") != "" || os.Args[0] == "gvmspawn-terminal-guard" || nsresource.IsHolder() {
		main()
	}
	code := m.Run()
	guesttest.RemoveBinary()
	os.Exit(code)
}

// result is what a run of the program left.
type result struct {
	stdout, stderr string
	status         int
}

// spawnCommand prepares a run of the program in dir, without an environment
// that changes its ways.
func spawnCommand(dir string, args ...string) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	c := exec.Command(self, args...)
	c.Args[0] = "gvmspawn"
	c.Dir = dir
	c.Env = []string{"GVMSPAWN_TEST_MAIN=1", "PATH=" + os.Getenv("PATH"), "HOME=" + dir, "XDG_RUNTIME_DIR=" + dir, "RUNTIME_DIRECTORY=" + filepath.Join(dir, "run"), "TERM=vt220"}
	return c
}

// execute runs the program; it must end by itself within half a minute.
func execute(t *testing.T, dir string, args ...string) result {
	t.Helper()
	c := spawnCommand(dir, args...)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(30*time.Second, func() { c.Process.Kill() })
	defer timer.Stop()
	var exit *exec.ExitError
	if err := c.Wait(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{out.String(), errs.String(), c.ProcessState.ExitCode()}
}

// TestBadInput: each row is refused with one sentence that says what is wrong,
// and status 1 (vmspawn.md §1, and the bad-input lists of the project).
func TestBadInput(t *testing.T) {
	dir := t.TempDir()
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(filepath.Join(dir, "tree"), 0o755))
	must(os.WriteFile(filepath.Join(dir, "file"), []byte("not a kernel"), 0o644))
	must(os.WriteFile(filepath.Join(dir, "big"), make([]byte, 1<<20+1), 0o644))
	must(os.WriteFile(filepath.Join(dir, "disk"), make([]byte, 1<<20), 0o644))
	must(os.WriteFile(filepath.Join(dir, "file.fd"), []byte("not a firmware"), 0o644))
	must(os.WriteFile(filepath.Join(dir, "erased"), bytes.Repeat([]byte{0xff}, 8192), 0o644))
	must(os.WriteFile(filepath.Join(dir, "firmware.json"), fmt.Appendf(nil, `{"interface-types": ["uefi"], "features": [],
		"mapping": {"device": "flash", "executable": {"filename": "%s/file.fd", "format": "raw"}, "nvram-template": {"filename": "/nonexistent", "format": "raw"}},
		"targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}]}`, dir), 0o644))
	zeroes := "00000000-0000-0000-0000-000000000000"
	for _, c := range []struct{ args, want string }{
		// getopt
		{"--nope", "unrecognized option '--nope'"},
		{"-Z", "invalid option -- 'Z'"},
		{"-D", "option requires an argument -- 'D'"},
		{"--directory", "option '--directory' requires an argument"},
		{"--quiet=yes", "option '--quiet' doesn't allow an argument"},
		{"--bind-user-=x", "option '--bind-user-' is ambiguous; possibilities: '--bind-user-shell' '--bind-user-group'"},
		{"--forward-journal-max=x", "option '--forward-journal-max' is ambiguous; possibilities:"},
		// combinations
		{"-D tree -i disk", "options --directory= and --image= cannot be combined"},
		{"-D tree --initrd=file", "option --initrd= cannot be used without --linux="},
		{"-i disk --private-users=1000", "option --private-users= can only be used with --directory="},
		{"-i disk --grow-image=1G --image-format=qcow2", "--grow-image= cannot be used with --image-format=qcow2"},
		{"-i disk -x --grow-image=1G", "options --grow-image= and --ephemeral cannot be combined"},
		{"-D tree --port=80", "option --port= can only be used with --network-user-mode"},
		{"--deterministic --kvm=yes", "options --deterministic and --kvm=yes cannot be combined"},
		{"--deterministic --cpus=2", "options --deterministic and --cpus=2 cannot be combined"},
		{"--seed=1", "option --seed= can only be used with --deterministic"},
		{"--gdb=0", "expected a port from 1 to 65535, or unix:PATH"},
		{"--gdb=localhost:1", "expected a port from 1 to 65535, or unix:PATH"},
		{"-D tree --linux=file --gdb=unix:file", "cannot listen for a debugger: address already in use"},
		{"-D tree --linux=file --gdb=unix:missing/socket", "cannot listen for a debugger: no such file or directory"},
		// images
		{"-D missing --linux=file", "missing: no such file or directory"},
		{"-D file --linux=file", "is not a directory"},
		{"-i missing --linux=file", "missing: no such file or directory"},
		{"-i tree --linux=file", "is a directory, use --directory="},
		{"-i /dev/null --linux=file", "neither a directory nor a disk image"},
		{"-i disk --linux=file", "without a root or usr partition, refusing"},
		{"-M nothing-of-that-name", "no image for machine 'nothing-of-that-name'"},
		{"-M a/b", "invalid machine name: a/b"},
		{"-M ..", "invalid machine name: .."},
		{"-M x_y", "invalid machine name: x_y"},
		{"-D tree --extra-drive=missing --linux=file", "missing: no such file or directory"},
		{"-D tree --extra-drive=tree --linux=file", "is a directory"},
		{"-D tree --image-format=vhd", "expected one of raw, qcow2"},
		{"-D tree --image-disk-type=ide", "expected one of virtio-blk"},
		{"-D tree --discard-disk=maybe", "expected a boolean"},
		// kernels
		{"-D tree --linux=missing", "missing: no such file or directory"},
		{"-D tree --linux=tree", "is not a regular file"},
		{"-D tree --linux=file --initrd=missing", "missing: no such file or directory"},
		{"-D tree", "no kernel was found in"},
		{"-D tree --linux=file", "file"},
		// sizes and numbers
		{"--ram=0", "a machine needs more memory than none"},
		{"--ram=x", "expected a size"},
		{"--ram=2G:1G", "the maximum is smaller"},
		{"--ram=1G:2G:0", "the number of slots is not a positive number"},
		{"--ram=1G::2", "expected a size"},
		{"--ram=1G:2G:3:4", "expected BYTES[:MAXBYTES[:SLOTS]]"},
		{"--ram=1G:2T", "a machine can have at most 1024G"},
		{"--ram=99999999999999E", "out of range"},
		{"--cpus=0", "expected a number from 1 to 64"},
		{"--cpus=65", "expected a number from 1 to 64"},
		{"--cpus=x", "expected a number from 1 to 64"},
		{"--cpus=4,sockets=3", "4 CPUs cannot be divided into that topology"},
		{"--kvm=perhaps", "expected yes, no or auto"},
		{"--vsock=perhaps", "expected yes, no or auto"},
		{"--vsock-cid=2", "specified CID is not regular, refusing"},
		{"--vsock-cid=host", "specified CID is not regular, refusing"},
		{"--vsock-cid=4294967295", "specified CID is not regular, refusing"},
		{"--vsock-cid=x", "expected a number from 3"},
		{"--uuid=" + zeroes, "may not be all zeroes"},
		{"--uuid=123", "invalid UUID"},
		{"--private-users=4294967295", "invalid UID shift"},
		{"--private-users=4294967290:100", "ends beyond the last valid UID"},
		{"--private-users=0:0", "the UID range is empty"},
		{"--private-users=x", "invalid UID shift"},
		{"--dax=3M", "power of two"},
		{"--grow-image=x", "expected a size"},
		{"--stop-timeout=soon", "number of seconds"},
		// binds
		{"-D tree --bind=rel", "the path in the guest must be absolute"},
		{"-D tree --bind=", "no kernel was found in"}, // resets the list
		{"-D tree --bind=:/x", "the source path is empty"},
		{"-D tree --bind=missing:/x --linux=file", "missing: no such file or directory"},
		{"-D tree --bind-ro=/dev/null --linux=file", "neither a directory nor a regular file"},
		{"-D tree --linux=file --bind-user=nobody-of-that-name", "there is no user 'nobody-of-that-name' on this host"},
		{"-D tree --linux=file --bind-user=root", "root of the host cannot be a user of the guest"},
		{"--bind-user=a:b", "invalid user or group name: a:b"},
		{"--bind-user-group=x", "can only be used with --bind-user="},
		{"--bind-user-shell=sh", "expected yes, no or an absolute path"},
		// network
		{"--network-user-mode --port=0", "expected a port from 1 to 65535"},
		{"--network-user-mode --port=[::1:5", "after the IPv6 address"},
		{"--slice=a--b", "invalid slice name: a--b"},
		{"--property=x", "expected a unit property"},
		{"--slice=x --keep-unit", "cannot be combined with --keep-unit"},
		{"--forward-journal-max-use=1G", "can only be used with --forward-journal="},
		{"--forward-journal=/x --vsock=no", "needs vsock"},
		{"--forward-journal-max-files=0", "expected a positive number"},
		// strings
		{"-s \xff\xfe", "not valid UTF-8"},
		{"--console=loud", "expected one of interactive"},
		{"--console-transport=pigeon", "expected one of virtio, serial"},
		{"--background=red", "SGR background"},
		{"--ssh-key-type=dsa;reboot", "expected one of ed25519"},
		// credentials
		{"--set-credential=novalue", "expected ID:VALUE"},
		{"--set-credential=a/b:x", "invalid credential name"},
		{"--set-credential=a:1 --set-credential=a:2", "duplicate credential 'a'"},
		{`--set-credential=a:\q`, "invalid escape sequence"},
		{"--load-credential=a:/nonexistent", "no such file or directory"},
		{"--load-credential=a:/dev/zero", "neither a regular file nor a socket"},
		{"--load-credential=a:name", "$CREDENTIALS_DIRECTORY is not set"},
		{"--load-credential=a:" + dir + "/big", "larger than 1 MiB"},
		// TPM
		{"--tpm=maybe", "yes, no or auto"},
		{"--tpm-state=name", "absolute path or path starting with './' required"},
		{"--deterministic --tpm=yes", "cannot be combined"},
		// what does not exist yet says so
		{"-D tree --firmware=bios", "a BIOS cannot start a directory"},
		{"-i disk --firmware=bios --linux=file", "options --firmware=bios and --linux= cannot be combined"},
		{"-i disk --firmware=bios --secure-boot=yes", "options --firmware=bios and --secure-boot= or --firmware-features= cannot be combined"},
		{"--firmware=bios --firmware=describe", "a BIOS has no descriptor"},
		{"--firmware=name", "absolute path or path starting with './' required"},
		{"--firmware=none --secure-boot=yes", "options --firmware=none and --secure-boot= or --firmware-features= cannot be combined"},
		{"--firmware=none --efi-nvram-state=/x", "options --firmware=none and --efi-nvram-state= cannot be combined"},
		{"--firmware=uefi --deterministic", "options --deterministic and --firmware= cannot be combined"},
		{"-D tree --firmware=" + dir + "/nonexistent.json", "option --firmware: " + dir + "/nonexistent.json: no such file or directory"},
		{"-D tree --firmware=" + dir + "/file", "file is not a firmware descriptor: "},
		{"-D tree --firmware=" + dir + "/nonexistent.fd", "nonexistent.fd: no such file or directory"},
		{"-D tree --firmware-features=intel-tdx", "no UEFI firmware can be used: "},
		{"-D tree --firmware=" + dir + "/firmware.json", "cannot read /nonexistent, the template of the EFI variables: no such file"},
		{"-D tree --firmware=" + dir + "/firmware.json --efi-nvram-template=./file", "file is not a template of EFI variables"},
		{"-D tree --firmware=" + dir + "/firmware.json --efi-nvram-template=./erased --efi-nvram-state=./file", "file has "},
		{"-D tree --firmware=" + dir + "/firmware.json --efi-nvram-template=./erased --efi-nvram-state=off --linux=file", "file has no EFI stub, so firmware cannot start it"},
		{"-D tree --firmware=" + dir + "/file.fd --efi-nvram-state=/x", "give one with --efi-nvram-template="},
		{"--efi-nvram-template=name", "absolute path or path starting with './' required"},
		{"--efi-nvram-state=name", "absolute path or path starting with './' required"},
		{"--secure-boot=maybe", "expected yes, no or auto"},
		{"firmware", "expected 'firmware list' or 'firmware vars PATH'"},
		{"firmware vars file", "not an EFI variable store"},
		{"firmware vars nonexistent", "no such file or directory"},
		{"--firmware-features=nope", "unknown firmware feature nope"},
		{"--coco=tdx", "confidential computing is not supported yet"},
		{"--coco=x", "expected no, sev-snp or tdx"},
		{"--console=gui", "a graphical console is not supported yet"},
		{"--qemu-gui", "a graphical console is not supported yet"},
		{"--bind-volume=x:y", "not supported yet"},
	} {
		r := execute(t, dir, strings.Split(c.args, " ")...)
		line := strings.TrimSuffix(r.stderr, "\n")
		if i := strings.LastIndexByte(line, '\n'); i >= 0 && strings.HasPrefix(line, "░") {
			line = line[i+1:] // status lines come before
		}
		if r.status != 1 || !strings.HasPrefix(line, "gvmspawn: ") || !strings.Contains(line, c.want) || strings.ContainsRune(line, '\n') || r.stdout != "" {
			t.Errorf("%q: status %d, stdout %q, stderr %q, want %q", c.args, r.status, r.stdout, r.stderr, c.want)
		}
	}
}

// TestManyOptions: 10,000 options are no problem.
func TestManyOptions(t *testing.T) {
	args := make([]string, 10000)
	for i := range args {
		args[i] = "--smbios11=x"
	}
	if r := execute(t, t.TempDir(), append(args, "--version")...); r.status != 0 {
		t.Errorf("%d %s", r.status, r.stderr)
	}
}

// TestLongCommandLine: COMMAND_LINE_SIZE is a limit that is said (vmspawn.md §2.1).
func TestLongCommandLine(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "kernel"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	r := execute(t, dir, "-D", dir, "--linux=kernel", strings.Repeat("x", 2048))
	if r.status != 1 || !strings.Contains(r.stderr, "longer than 2047 bytes") {
		t.Errorf("%d %s", r.status, r.stderr)
	}
}

func TestInformation(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct{ args, want string }{
		{"--help", "\nCredentials:\n"}, {"-h", "  -D --directory=PATH "}, {"--version", "gvmspawn "}, {"-qh --nope", "[OPTIONS...]"},
		{"--firmware-features=list", "\nenrolled-keys\n"}, {"--firmware=list", ""},
	} {
		r := execute(t, dir, strings.Fields(c.args)...)
		if r.status != 0 || r.stderr != "" || !strings.Contains(r.stdout, c.want) {
			t.Errorf("%q: status %d, %q %q", c.args, r.status, r.stdout, r.stderr)
		}
	}
}

// TestAlias: under systemd-vmspawn's name there are no commands, so that every
// kernel argument is one.
func TestAlias(t *testing.T) {
	c := spawnCommand(t.TempDir(), "list")
	c.Args[0] = "/usr/bin/systemd-vmspawn"
	out, err := c.CombinedOutput()
	if err == nil || !strings.HasPrefix(string(out), "systemd-vmspawn: no kernel was found in ") {
		t.Errorf("%v %s", err, out)
	}
}
