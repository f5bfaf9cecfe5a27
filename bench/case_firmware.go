package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// firmwareCase is the way through UEFI firmware, which measures it into a TPM or has none.
func firmwareCase(name, about string, tpm bool) benchmark {
	return benchmark{name: name, about: about, prepare: func(e *environment) (*plan, error) {
		k := guesttest.KernelAsset(e.host, "kernel-bookworm")
		initrd, err := e.initrd("firmware", k)
		if err != nil {
			return nil, err
		}
		const limit = 5 * time.Minute
		m := machine{kernel: k.Path, initrd: initrd, ram: 512}
		share := filepath.Join(guesttest.Asset(e.host, "ovmf"), "usr/share")
		descriptor, err := ovmfDescriptor(e.dir, share)
		if err != nil {
			return nil, err
		}
		p := &plan{metrics: bootMetrics}
		options := []string{"--firmware=" + descriptor, "--efi-nvram-state=off"}
		if tpm {
			state, err := e.newTPM()
			if err != nil {
				p.skip("%v", err)
				return p, nil
			}
			options = append(options, "--tpm=yes", "--tpm-state="+state)
		}
		ours := &guestSubject{limit: limit, argv: func() ([]string, error) { return e.gvmspawnArgs(m, "no", options...), nil }}
		p.subjects = append(p.subjects, subject{"gvmspawn", ours.run})
		qemu, err := exec.LookPath("qemu-system-x86_64")
		if err != nil {
			p.skip("QEMU is not installed")
			return p, nil
		}
		theirs := &guestSubject{limit: limit}
		theirs.argv = func() ([]string, error) {
			argv, err := qemuFirmwareArgs(qemu, m, e.dir, share)
			if err == nil && tpm {
				var more []string
				theirs.server, more, err = e.qemuTPM()
				argv = append(argv, more...)
			}
			return argv, err
		}
		p.subjects = append(p.subjects, subject{"QEMU q35, TCG", theirs.run})
		return p, nil
	}}
}

// newTPM makes the state of a TPM, which takes seconds that no run shall have, and marks
// it as gvmspawn does.
func (e *environment) newTPM() (string, error) {
	dir, err := os.MkdirTemp(e.dir, "tpm")
	if err != nil {
		return "", err
	}
	out, err := exec.Command("swtpm_setup", "--tpm-state", dir, "--tpm2", "--pcr-banks", "sha256").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("swtpm_setup: %w: %s", err, out)
	}
	return dir, os.WriteFile(filepath.Join(dir, ".manufactured"), nil, 0o600)
}

// qemuTPM starts a new TPM and returns what QEMU needs to use it.
func (e *environment) qemuTPM() (*process, []string, error) {
	state, err := e.newTPM()
	if err != nil {
		return nil, nil, err
	}
	server, socket, err := e.serve("swtpm", func(socket string) []string {
		return []string{"swtpm", "socket", "--tpm2", "--tpmstate", "dir=" + state, "--ctrl", "type=unixio,path=" + socket, "--terminate"}
	})
	return server, []string{"-chardev", "socket,id=swtpm,path=" + socket, "-tpmdev", "emulator,id=tpm,chardev=swtpm", "-device", "tpm-tis,tpmdev=tpm"}, err
}

// ovmfDescriptor makes Debian's descriptor of OVMF for where its package is unpacked.
func ovmfDescriptor(dir, share string) (string, error) {
	b, err := os.ReadFile(filepath.Join(share, "qemu/firmware/60-edk2-x86_64.json"))
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "ovmf.json")
	return path, os.WriteFile(path, []byte(strings.ReplaceAll(string(b), "/usr/share/", share+"/")), 0o644)
}

// qemuFirmwareArgs is QEMU's command line for the board that OVMF is made for,
// with a fresh copy of its variables.
func qemuFirmwareArgs(qemu string, m machine, dir, share string) ([]string, error) {
	vars, err := os.ReadFile(filepath.Join(share, "OVMF/OVMF_VARS_4M.fd"))
	if err != nil {
		return nil, err
	}
	store := filepath.Join(dir, "qemu-vars.fd")
	if err := os.WriteFile(store, vars, 0o644); err != nil {
		return nil, err
	}
	return []string{qemu, "-accel", "tcg", "-cpu", "max", "-M", "q35,smm=off", "-m", fmt.Sprint(m.ram), "-nodefaults", "-no-user-config",
		"-nographic", "-serial", "stdio", "-no-reboot", "-kernel", m.kernel, "-initrd", m.initrd, "-append", m.kernelLine() + qemuLine,
		"-drive", "if=pflash,format=raw,readonly=on,file=" + filepath.Join(share, "OVMF/OVMF_CODE_4M.fd"),
		"-drive", "if=pflash,format=raw,file=" + store}, nil
}
