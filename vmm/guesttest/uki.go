package guesttest

import (
	"debug/pe"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// UKISection is a section of a unified kernel image and the file that it holds.
type UKISection struct{ Name, File string }

// UKI makes a unified kernel image of systemd's stub (UAPI.5) and returns its
// path. The sections lie one behind the other from 2 MiB above the stub's base on.
func UKI(t testing.TB, sections ...UKISection) string {
	t.Helper()
	stub := filepath.Join(Asset(t, "systemd-boot"), "usr/lib/systemd/boot/efi/linuxx64.efi.stub")
	f, err := pe.Open(stub)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	at := int64(f.OptionalHeader.(*pe.OptionalHeader64).ImageBase) + 2<<20
	var args []string
	for _, s := range sections {
		st, err := os.Stat(s.File)
		if err != nil {
			t.Fatal(err)
		}
		args = append(args, "--add-section", s.Name+"="+s.File, "--change-section-vma", fmt.Sprintf("%s=%#x", s.Name, at),
			"--set-section-flags", s.Name+"=data,readonly")
		at += (st.Size() + 1<<16) &^ (1<<16 - 1)
	}
	uki := filepath.Join(t.TempDir(), "uki.efi")
	if out, err := exec.Command(Tool(t, "objcopy"), append(args, stub, uki)...).CombinedOutput(); err != nil {
		t.Fatalf("objcopy: %v\n%s", err, out)
	}
	return uki
}
