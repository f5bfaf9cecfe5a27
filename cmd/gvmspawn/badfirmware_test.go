package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gvmspawn/gvmspawn/firmware/uefi"
	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// writeDescriptor writes a descriptor of firmware without Secure Boot.
func writeDescriptor(t *testing.T, path, code, vars string) {
	t.Helper()
	file := func(name string) map[string]string { return map[string]string{"filename": name, "format": "raw"} }
	b, err := json.Marshal(map[string]any{
		"description": "OVMF", "interface-types": []string{"uefi"}, "features": []string{}, "tags": []string{},
		"mapping": map[string]any{"device": "flash", "executable": file(code), "nvram-template": file(vars)},
		"targets": []any{map[string]any{"architecture": "x86_64", "machines": []string{"pc-q35-*"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, path, b, 0o644)
}

// TestBadFirmware: what is wrong with firmware, its variables or its descriptor is
// one sentence, and status 1.
func TestBadFirmware(t *testing.T) {
	ovmf := filepath.Join(guesttest.Asset(t, "ovmf"), "usr/share/OVMF")
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	code, err := os.ReadFile(filepath.Join(ovmf, "OVMF_CODE_4M.fd"))
	if err != nil {
		t.Fatal(err)
	}
	vars, err := os.ReadFile(filepath.Join(ovmf, "OVMF_VARS_4M.fd"))
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"code": code, "odd": code[:len(code)-100], "half": code[:2<<20], "zeroes": make([]byte, len(code)), "none": nil, "huge": make([]byte, 16<<20+4096),
		"vars": vars, "cut": vars[:64<<10], "short": vars[:len(vars)-4096], "text": []byte("no variables"),
		"not.json": []byte("firmware = yes"), "empty.json": nil, "list.json": []byte("[1, 2]"), "other.json": []byte(`{"description": "x"}`), "types.json": []byte(`{"mapping": 7}`),
	} {
		writeFile(t, at(name), data, 0o644)
	}
	if err := os.Mkdir(at("tree"), 0o755); err != nil {
		t.Fatal(err)
	}
	small := filepath.Join(ovmf, "OVMF_VARS.fd")
	for name, pair := range map[string][2]string{
		"good": {at("code"), at("vars")}, "odd": {at("odd"), at("vars")}, "half": {at("half"), at("vars")}, "zeroes": {at("zeroes"), at("vars")}, "none": {at("none"), at("vars")},
		"huge": {at("huge"), at("vars")}, "nocode": {at("nothing"), at("vars")}, "directory": {at("tree"), at("vars")},
		"novars": {at("code"), at("nothing")}, "smallvars": {at("code"), small}, "cutvars": {at("code"), at("cut")}, "shortvars": {at("code"), at("short")}, "textvars": {at("code"), at("text")},
	} {
		writeDescriptor(t, at(name+".json"), pair[0], pair[1])
	}
	good, err := os.ReadFile(at("good.json"))
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string][2]string{"bios": {`"uefi"`, `"bios"`}, "arm": {"x86_64", "aarch64"}, "microvm": {"pc-q35-*", "microvm"}, "memory": {`"flash"`, `"memory"`}} {
		writeFile(t, at(name+".json"), bytes.ReplaceAll(good, []byte(change[0]), []byte(change[1])), 0o644)
	}
	copyFile(t, at("code"), at("code.fd"))
	writeFile(t, at("used"), vars, 0o600)
	used, err := uefi.OpenVars(at("used"))
	if err != nil {
		t.Fatal(err)
	}
	defer used.Close()
	for _, c := range []struct{ args, want string }{
		{"--firmware=./good.json --efi-nvram-state=./used", "used is in use by another machine: give this one its own copy"},
		{"--firmware=./odd.json", "odd has 3653532 bytes, which is no multiple of 4 KiB: it is truncated"},
		{"--firmware=./half.json", "half has no code at its end, where a CPU starts: it is truncated"},
		{"--firmware=./zeroes.json", "zeroes has no code at its end, where a CPU starts: it is truncated"},
		{"--firmware=./none.json", "none is empty"},
		{"--firmware=./huge.json", "flash has at most"},
		{"--firmware=./nocode.json", "nothing: no such file or directory"},
		{"--firmware=./directory.json", "tree is not a regular file"},
		{"--firmware=./novars.json", "cannot read " + at("nothing") + ", the template of the EFI variables: no such file"},
		{"--firmware=./smallvars.json --efi-nvram-state=off", "does not belong to the firmware"},
		{"--firmware=./cutvars.json", "it is truncated"},
		{"--firmware=./shortvars.json", "it is truncated"},
		{"--firmware=./textvars.json", "text is not a template of EFI variables"},
		{"--firmware=./good.json --efi-nvram-state=./text", "text has 12 bytes, but the variables of this firmware take 540672"},
		{"--firmware=./good.json --efi-nvram-state=" + small, "has 131072 bytes, but the variables of this firmware take 540672"},
		{"--firmware=./good.json --efi-nvram-state=./tree", "tree, which is to keep the EFI variables, is not a regular file"},
		{"--firmware=./good.json --efi-nvram-state=/nonexistent/state", "cannot keep the EFI variables in /nonexistent/state, say where with --efi-nvram-state=: no such file"},
		{"--firmware=./good.json --efi-nvram-template=./nothing", "template of the EFI variables: no such file"},
		{"--firmware=./nothing.json", "nothing.json: no such file or directory"},
		{"--firmware=./not.json", "not.json is not a firmware descriptor: "},
		{"--firmware=./empty.json", "empty.json is not a firmware descriptor: "},
		{"--firmware=./list.json", "list.json is not a firmware descriptor: "},
		{"--firmware=./other.json", `other.json is not a firmware descriptor: the field "interface-types" is missing`},
		{"--firmware=./types.json", "types.json is not a firmware descriptor: "},
		{"--firmware=./bios.json", "bios.json is no UEFI firmware"},
		{"--firmware=./arm.json", "arm.json is not for x86-64 machines of type q35"},
		{"--firmware=./microvm.json", "microvm.json is not for x86-64 machines of type q35"},
		{"--firmware=./memory.json", "memory.json is mapped as memory, not as split flash"},
		{"--firmware=./good.json --secure-boot=yes", "good.json lacks the feature secure-boot"},
		{"--firmware=./code.fd --firmware-features=acpi-s4", "code.fd lacks the feature acpi-s4"},
	} {
		r := execute(t, dir, append([]string{"-q", "-D", "tree", "--kvm=no", "--register=no", "--tpm=no", "--vsock=no"}, strings.Fields(c.args)...)...)
		oneSentence(t, c.args, r, c.want)
	}
}

// TestFirmwareWords: --firmware=list prints the descriptors of the three directories with
// overrides and masks, in order of their names, and --firmware=describe the one that would
// be taken. Variables that are not to be kept leave no file.
func TestFirmwareWords(t *testing.T) {
	dir := t.TempDir()
	firmwareDescriptors(t, dir)
	own := filepath.Join(dir, ".config/qemu/firmware")
	found, err := filepath.Glob(filepath.Join(own, "*.json"))
	if err != nil || len(found) < 3 {
		t.Fatalf("%q %v", found, err)
	}
	shared, _ := filepath.Glob("/usr/share/qemu/firmware/*.json")
	local, _ := filepath.Glob("/etc/qemu/firmware/*.json")
	for _, path := range append(shared, local...) { // those of this machine, if any, are masked
		writeFile(t, filepath.Join(own, filepath.Base(path)), nil, 0o644)
	}
	writeDescriptor(t, filepath.Join(own, "10-first.json"), "/first", "/vars")
	firmwareDescriptors(t, dir)
	masked := found[len(found)-1]
	writeFile(t, masked, nil, 0o644)
	want := filepath.Join(own, "10-first.json") + "\n" + strings.Join(found[:len(found)-1], "\n") + "\n"
	for _, args := range [][]string{{"--firmware=list"}, {"firmware", "list"}} {
		if r := execute(t, dir, args...); r.status != 0 || r.stdout != want {
			t.Errorf("%q: status %d, %s%s, want %s", args, r.status, r.stdout, r.stderr, want)
		}
	}
	for _, c := range []struct{ args, want string }{
		{"--firmware=describe", `"filename":"/first"`},
		{"--firmware=describe --secure-boot=yes", "OVMF_CODE_4M.secboot.fd"},
		{"--firmware=describe --firmware-features=enrolled-keys", "OVMF_VARS_4M.ms.fd"},
		{"--firmware=./.config/qemu/firmware/10-first.json --firmware=describe", `"filename":"/first"`},
	} {
		if r := execute(t, dir, strings.Fields(c.args)...); r.status != 0 || !strings.Contains(r.stdout, c.want) {
			t.Errorf("%s: status %d, %s%s", c.args, r.status, r.stdout, r.stderr)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "tree"), 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "file"), []byte("no kernel"), 0o644)
	for _, c := range []struct {
		args string
		kept bool
	}{{"--efi-nvram-state=off", false}, {"-x", false}, {"--efi-nvram-state=auto", true}} {
		r := execute(t, dir, append(strings.Fields("-q -D tree --kvm=no --register=no --tpm=no --vsock=no --linux=file --firmware="+ovmfDescriptor(t, dir)), c.args)...)
		oneSentence(t, c.args, r, "has no EFI stub")
		if _, err := os.Stat(filepath.Join(dir, "tree.efinvramstate")); err == nil != c.kept {
			t.Errorf("%s: the file of the variables: %v", c.args, err)
		}
	}
}

// fakeSwtpm is a swtpm that plays its part up to the command of its control channel
// (swtpm_ioctls(3)) that mode names.
func fakeSwtpm(mode string) {
	control := os.NewFile(3, "control")
	const capability, initialize, stop, setDataFD, setBufferSize = 1, 2, 14, 16, 17
	answers := map[uint32][]byte{capability: {0, 0, 0, 0, 0, 0, 0xff, 0xff}, initialize: {0, 0, 0, 0}, stop: {0, 0, 0, 0}, setDataFD: {0, 0, 0, 0}, setBufferSize: make([]byte, 16)}
	failed := []byte{0, 0, 0, 9}
	switch mode {
	case "old":
		answers[capability] = []byte{0, 0, 0, 0, 0, 0, 0, 0x0f}
	case "no data":
		answers[setDataFD] = failed
	case "no init":
		answers[initialize] = failed
	case "no stop":
		answers[stop] = failed
	case "ends":
		delete(answers, setBufferSize)
	}
	for b := make([]byte, 4096); ; {
		n, err := control.Read(b)
		if err != nil || n < 4 {
			return
		}
		answer, ok := answers[binary.BigEndian.Uint32(b)]
		if !ok {
			return
		}
		control.Write(answer) //nolint:errcheck // the test sees the end
	}
}

// TestBadTPM: each step at which swtpm can fail is one sentence with --tpm=yes,
// and nothing of its state stays.
func TestBadTPM(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, setup, swtpm, want string }{
		{"setup", "echo 'swtpm_setup: no keys today' >&2; exit 1", "exit 0", "swtpm_setup cannot make a TPM in DIR: swtpm_setup: no keys today"},
		{"refuses", "exit 0", "echo 'swtpm: Need read/write permissions.' >&2; exit 1", "cannot start swtpm on DIR: CMD_GET_CAPABILITY: swtpm has ended (swtpm: Need read/write permissions.)"},
		{"old", "exit 0", "fake", "cannot start swtpm on DIR: this swtpm is too old"},
		{"no data", "exit 0", "fake", "cannot start swtpm on DIR: CMD_SET_DATAFD: swtpm answers with error 0x9"},
		{"no stop", "exit 0", "fake", "cannot start swtpm on DIR: CMD_STOP: swtpm answers with error 0x9"},
		{"ends", "exit 0", "fake", "cannot start swtpm on DIR: CMD_SET_BUFFERSIZE: swtpm has ended"},
		{"no init", "exit 0", "fake", "cannot start swtpm on DIR: CMD_INIT: swtpm answers with error 0x9"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			l := tinyCommand(t, dir, "-q", "--tpm=yes", "--tpm-state=off")
			bin := filepath.Join(dir, "bin")
			if c.swtpm == "fake" {
				c.swtpm = fmt.Sprintf("FAKE_SWTPM='%s' exec %s", c.name, self)
			}
			for name, script := range map[string]string{"swtpm_setup": c.setup, "swtpm_localca": "exit 0", "swtpm": c.swtpm} {
				writeFile(t, filepath.Join(bin, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755)
			}
			l.Env = append(l.Env, "PATH="+bin)
			l.start()
			status := l.status()
			message := l.errs.String()
			if i := strings.Index(message, l.dir); i >= 0 {
				rest := message[i:]
				end := strings.IndexAny(rest, ": ")
				message = message[:i] + "DIR" + rest[max(end, 0):]
			}
			oneSentence(t, c.name, result{l.out.String(), message, status}, c.want)
			if left, err := filepath.Glob(filepath.Join(dir, "run", "*", "*")); err != nil || len(left) != 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}
