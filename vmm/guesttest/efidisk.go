package guesttest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"
)

// Command runs a program that makes a part of a disk image.
func Command(t testing.TB, input string, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(Tool(t, name), args...)
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// smallInit is the init of SmallInitrd.
const smallInit = `#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc; /bin/busybox mount -t sysfs sysfs /sys; /bin/busybox mount -t devtmpfs dev /dev
exec >/dev/console 2>&1 </dev/console
echo "BOOTED $(/bin/busybox cat /sys/firmware/efi/fw_platform_size 2>/dev/null) $(/bin/busybox cat /proc/cmdline)"
/bin/busybox poweroff -f
`

// SmallInitrd is an initrd that needs no disk: it says so and powers off.
func SmallInitrd(t testing.TB) string {
	t.Helper()
	busybox, err := os.ReadFile(Busybox(t))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := cpio.Newc.Writer(&b)
	var records []cpio.Record
	for _, d := range []string{"bin", "dev", "proc", "sys"} {
		records = append(records, cpio.Directory(d, 0o755))
	}
	records = append(records, cpio.CharDev("dev/console", 0o600, 5, 1), cpio.StaticFile("init", smallInit, 0o755), cpio.StaticFile("bin/busybox", string(busybox), 0o755))
	if err := cpio.WriteRecords(w, records); err != nil {
		t.Fatal(err)
	}
	if err := cpio.WriteTrailer(w); err != nil {
		t.Fatal(err)
	}
	initrd := filepath.Join(t.TempDir(), "initrd")
	if err := os.WriteFile(initrd, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return initrd
}

// LinuxUKI makes a unified kernel image of a kernel, its initrd and its command line.
func LinuxUKI(t testing.TB, kernel, initrd, cmdline string) string {
	t.Helper()
	text := filepath.Join(t.TempDir(), "cmdline")
	if err := os.WriteFile(text, []byte(cmdline), 0o600); err != nil {
		t.Fatal(err)
	}
	return UKI(t, UKISection{Name: ".cmdline", File: text}, UKISection{Name: ".linux", File: kernel},
		UKISection{Name: ".initrd", File: initrd})
}

// EFIDisk makes a GPT image: an EFI system partition with the program that
// firmware starts, and an ext4 root with a tree, of rootMiB MiB.
func EFIDisk(t testing.TB, program, tree string, rootMiB int64) string {
	t.Helper()
	dir := t.TempDir()
	disk, esp, root := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "esp"), filepath.Join(dir, "root")
	const espMiB = 96
	for path, size := range map[string]int64{disk: espMiB + rootMiB + 2, esp: espMiB, root: rootMiB} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, size<<20); err != nil {
			t.Fatal(err)
		}
	}
	Command(t, fmt.Sprintf("label: gpt\nstart=1MiB, size=%dMiB, type=U\nsize=%dMiB, type=L\n", espMiB, rootMiB), "sfdisk", "-q", disk)
	Command(t, "", "mformat", "-i", esp, "-F", "::")
	Command(t, "", "mmd", "-i", esp, "::/EFI", "::/EFI/BOOT")
	Command(t, "", "mcopy", "-i", esp, program, "::/EFI/BOOT/BOOTX64.EFI")
	Command(t, "", "mke2fs", "-q", "-t", "ext4", "-d", tree, root)
	for file, at := range map[string]int64{esp: 1, root: 1 + espMiB} {
		Command(t, "", "dd", "if="+file, "of="+disk, "bs=1M", fmt.Sprintf("seek=%d", at), "conv=notrunc,sparse", "status=none")
	}
	return disk
}
