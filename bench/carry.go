package main

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
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
	if err := carryLibraries(files, qemu); err != nil {
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

// carryLibraries adds the shared libraries of a program.
func carryLibraries(files map[string]string, program string) error {
	out, err := exec.Command("ldd", program).Output()
	if err != nil {
		return fmt.Errorf("libraries of %s: %w", program, err)
	}
	for line := range strings.Lines(string(out)) {
		for _, w := range strings.Fields(line) {
			if !filepath.IsAbs(w) {
				continue
			}
			// A name in the archive, and the file behind its links.
			real, err := filepath.EvalSymlinks(w)
			if err != nil {
				return err
			}
			files[strings.TrimPrefix(w, "/")] = real
		}
	}
	return nil
}
