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

// firmwareSoftCase is the way through UEFI firmware.
var firmwareSoftCase = benchmark{
	name:  "firmware-soft",
	about: "bookworm's cloud bzImage and an initramfs through OVMF on a software CPU: start, init, power-off",
	prepare: func(e *environment) (*plan, error) {
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
		ours := &guestSubject{limit: limit, argv: func() ([]string, error) {
			return e.gvmspawnArgs(m, "no", "--firmware="+descriptor, "--efi-nvram-state=off"), nil
		}}
		p.subjects = append(p.subjects, subject{"gvmspawn", ours.run})
		qemu, err := exec.LookPath("qemu-system-x86_64")
		if err != nil {
			p.skip("QEMU is not installed")
			return p, nil
		}
		theirs := &guestSubject{limit: limit, argv: func() ([]string, error) { return qemuFirmwareArgs(qemu, m, e.dir, share) }}
		p.subjects = append(p.subjects, subject{"QEMU q35, TCG", theirs.run})
		return p, nil
	},
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
