package main

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// firmware are QEMU's files for microvm and linux boot.
var firmware = []string{"bios-microvm.bin", "linuxboot_dma.bin", "pvh.bin", "kvmvapic.bin"}

// carryQEMU adds QEMU, the libraries that it needs and its firmware.
func carryQEMU(files map[string]string) error {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return errors.New("QEMU is not installed")
	}
	files["bin/qemu-system-x86_64"] = qemu
	if err := guesttest.CarryLibraries(files, qemu); err != nil {
		return err
	}
	for _, f := range firmware {
		real, err := filepath.EvalSymlinks(filepath.Join("/usr/share/qemu", f))
		if err != nil {
			return fmt.Errorf("firmware of QEMU: %w", err)
		}
		files["qemu/"+f] = real
	}
	return nil
}
