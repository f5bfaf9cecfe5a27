package vmm

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/boot/initrd"
	"github.com/gvmspawn/gvmspawn/boot/linux"
	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// buildInitrd makes an initrd that mounts a block device as the root, with
// the modules of the kernel's package.
func buildInitrd(t testing.TB, k guesttest.Kernel, device, cmdline string) string {
	t.Helper()
	img, err := linux.Open(k.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	root := initrd.Root{Source: device, Device: true, Types: []string{"ext4"}, Drivers: diskDrivers[DiskVirtioBlk].modules}
	image, err := initrd.Build(initrd.Config{
		Release: img.Release(), Kernel: k.Path, Places: []initrd.Place{{Root: k.Dir}},
		Modules: initrd.Wanted(root, "efivarfs", "qemu_fw_cfg"), Root: root, CommandLine: cmdline,
	})
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, image.Size())
	if _, err := image.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "initrd")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// firmwareInit is the init of a small guest: it says what firmware told, and
// powers off or waits for orders.
const firmwareInit = `exec >/dev/console 2>&1 </dev/console
echo "CMDLINE $(cat /proc/cmdline)"
echo "EFI $(ls -d /sys/firmware/efi) $(cat /sys/firmware/efi/fw_platform_size)"
echo "CPUS $(grep -c ^processor /proc/cpuinfo)"
echo "ACPI $(ls /sys/firmware/acpi/tables | tr '\n' ' ')"
echo "DMI $(tr '\0' '\n' < /sys/firmware/dmi/entries/11-0/raw | grep -a io.systemd | tr -d '\001-\037')"
echo "PRODUCT $(cat /sys/class/dmi/id/product_name)"
dmesg | grep -iE "acpi.*(error|warn)|firmware bug" 
mount -t efivarfs none /sys/firmware/efi/efivars && echo "VARS $(ls /sys/firmware/efi/efivars | grep -c .)"
V=/sys/firmware/efi/efivars/GvmTest-67766d73-7061-776e-8000-000000000001
if [ -e $V ]; then echo "VARIABLE $(tail -c +5 $V)"; else printf '\007\000\000\000value%s' "$(cat /proc/sys/kernel/random/uuid)" > $V && echo "VARIABLE SET"; fi
echo READY
while read -r line; do case $line in
off) poweroff -f;;
reboot) reboot -f;;
*) eval "$line"; echo DONE;;
esac; done
`

// efiDisk is a disk with a UKI of Debian's kernel and a busybox root.
func efiDisk(t testing.TB, kernel string) string {
	k := guesttest.KernelAsset(t, kernel)
	const cmdline = "root=/dev/vda2 rw console=ttyS0 panic=-1 quiet"
	uki := guesttest.LinuxUKI(t, k.Path, buildInitrd(t, k, "/dev/vda2", cmdline), cmdline)
	tree := guesttest.BusyboxTree(t, firmwareInit)
	return guesttest.EFIDisk(t, uki, tree, 64)
}

// TestBootFirmwareDisk: OVMF on the software CPU boots a disk image by its EFI
// system partition; ACPI, SMBIOS and EFI variables arrive; the variable survives
// a reboot and a machine that is killed.
func TestBootFirmwareDisk(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a machine on the software CPU")
	}
	firmwareDisk(t, "ovmf", 2, 5*time.Minute)
}

// TestLongFirmwareTrixie is TestBootFirmwareDisk with the firmware of Debian 13,
// which puts ECAM elsewhere.
func TestLongFirmwareTrixie(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("set GVMSPAWN_LONG=1")
	}
	firmwareDisk(t, "ovmf-trixie", 4, 5*time.Minute)
}

func firmwareDisk(t *testing.T, asset string, cpus int, limit time.Duration) {
	code, vars := ovmfOf(t, asset)
	cfg := Config{
		Name: "disk", CPUs: cpus, RAM: 512 << 20, Accel: AccelSoft, OEMStrings: []string{"io.systemd.credential:greeting=hello"},
		Firmware: &Firmware{Code: code, Vars: vars},
		Disks:    []Disk{{Path: efiDisk(t, "kernel-trixie"), Format: FormatRaw}},
	}
	ctx, kill := context.WithCancel(context.Background())
	defer kill()
	end := converse(ctx, t, cfg, limit,
		step{text: "CMDLINE root=/dev/vda2"},
		step{text: "EFI /sys/firmware/efi 64"},
		step{text: fmt.Sprintf("CPUS %d", cpus)},
		step{text: "FACP"},
		step{text: "io.systemd.credential:greeting=hello"},
		step{text: "VARIABLE SET"},
		step{text: "READY", answer: "reboot\n"},
		step{text: "VARIABLE value"},
		step{text: "READY", do: kill},
	)
	if end != EndKilled {
		t.Fatalf("end %d instead of a kill", end)
	}
	end = converse(context.Background(), t, cfg, limit, step{text: "VARIABLE value"}, step{text: "READY", answer: "off\n"})
	if end != EndPowerOff {
		t.Errorf("end %d instead of a power-off", end)
	}
}

// TestLongFirmwareKernel: kernel, initrd and command line handed over by fw_cfg,
// as a bzImage and as a UKI.
func TestLongFirmwareKernel(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("set GVMSPAWN_LONG=1")
	}
	k := guesttest.KernelAsset(t, "kernel-bookworm")
	disk := efiDisk(t, "kernel-bookworm")
	const cmdline = "root=/dev/vda2 rw console=ttyS0 panic=-1 mark=fwcfg"
	ramdisk := buildInitrd(t, k, "/dev/vda2", cmdline)
	for name, boot := range map[string]Boot{
		"bzImage": {Kernel: k.Path, Initrds: []string{ramdisk}, CommandLine: cmdline},
		"UKI":     {Kernel: guesttest.LinuxUKI(t, k.Path, ramdisk, cmdline+" mark=UKI")},
	} {
		t.Run(name, func(t *testing.T) {
			code, vars := ovmf(t)
			mark := "mark=fwcfg"
			if name == "UKI" {
				mark = "mark=UKI"
			}
			end := converse(context.Background(), t, Config{
				Name: "kernel", CPUs: 1, RAM: 1 << 30, Accel: AccelSoft, Boot: boot, Firmware: &Firmware{Code: code, Vars: vars},
				Disks: []Disk{{Path: disk, Format: FormatRaw}},
			}, 5*time.Minute, step{text: mark}, step{text: "EFI /sys/firmware/efi 64"}, step{text: "READY", answer: "off\n"})
			if end != EndPowerOff {
				t.Errorf("end %d instead of a power-off", end)
			}
		})
	}
}

// TestLongFirmwareDebian: an image of Debian boots through firmware to its
// systemd, which gets credentials of more than SMBIOS can carry, and the power
// button ends it.
func TestLongFirmwareDebian(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("set GVMSPAWN_LONG=1")
	}
	code, vars := ovmf(t)
	var m *Machine
	big := strings.Repeat("x", 400<<10)
	end := converseWith(context.Background(), t, &m, Config{
		Name: "debian", CPUs: 2, RAM: 1 << 30, Accel: AccelSoft,
		OEMStrings:  []string{"io.systemd.credential:greeting=hello"},
		Credentials: []Credential{{"small", []byte("well")}, {"big", []byte(big)}},
		Firmware:    &Firmware{Code: code, Vars: vars},
		Disks:       []Disk{{Path: debianDisk(t), Format: FormatRaw}},
	}, 10*time.Minute,
		step{text: "login: ", answer: "root\r"},
		step{text: "# ", answer: "systemctl is-system-running --wait; echo S=$?\r"},
		step{text: "S=", answer: "systemd-creds --system cat greeting small; systemd-creds --system cat big | wc -c\r"},
		step{text: "hello"}, step{text: "well"},
		step{text: fmt.Sprint(len(big))},
		step{text: "# ", do: func() { go m.PowerButton() }}, //nolint:errcheck // the end tells
	)
	if end != EndPowerOff {
		t.Errorf("end %d instead of a power-off", end)
	}
}

// debianDisk makes a GPT image with a unified kernel image and the Debian tree.
func debianDisk(t testing.TB) string {
	t.Helper()
	k := guesttest.KernelAsset(t, "kernel-trixie")
	const cmdline = "root=/dev/vda2 rw console=ttyS0 panic=-1 systemd.show_status=0"
	uki := guesttest.LinuxUKI(t, k.Path, buildInitrd(t, k, "/dev/vda2", cmdline), cmdline)
	return guesttest.EFIDisk(t, uki, guesttest.Asset(t, "tree-trixie"), 700)
}

// biosDisk makes an image with an MBR, and a FAT partition with SYSLINUX, a
// kernel and guesttest.SmallInitrd.
func biosDisk(t testing.TB) string {
	t.Helper()
	syslinux := guesttest.Asset(t, "syslinux")
	dir := t.TempDir()
	disk, part, config := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "part"), filepath.Join(dir, "syslinux.cfg")
	const partMiB = 48
	for path, size := range map[string]int64{disk: partMiB + 2, part: partMiB} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, size<<20); err != nil {
			t.Fatal(err)
		}
	}
	const text = "DEFAULT linux\nLABEL linux\n LINUX /vmlinuz\n INITRD /initrd\n APPEND console=ttyS0 quiet panic=-1 by.bios\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	guesttest.Command(t, "", "mformat", "-i", part, "-h", "16", "-s", "63", "-H", "2048", "::")
	for from, to := range map[string]string{guesttest.KernelAsset(t, "kernel-trixie").Path: "vmlinuz", guesttest.SmallInitrd(t): "initrd", config: "syslinux.cfg"} {
		guesttest.Command(t, "", "mcopy", "-i", part, from, "::/"+to)
	}
	guesttest.Command(t, "", filepath.Join(syslinux, "usr/bin/syslinux"), "--install", part)
	guesttest.Command(t, "", "dd", "if="+filepath.Join(syslinux, "usr/lib/syslinux/mbr/mbr.bin"), "of="+disk, "conv=notrunc", "status=none")
	guesttest.Command(t, fmt.Sprintf("label: dos\nstart=1MiB, size=%dMiB, type=c, bootable\n", partMiB), "sfdisk", "-q", "--wipe", "never", disk)
	guesttest.Command(t, "", "dd", "if="+part, "of="+disk, "bs=1M", "seek=1", "conv=notrunc,sparse", "status=none")
	return disk
}

// seaBIOS is the image of Debian's package seabios, which QEMU brings.
func seaBIOS(t testing.TB) string {
	t.Helper()
	const path = "/usr/share/seabios/bios-256k.bin"
	if _, err := os.Stat(path); err != nil {
		guesttest.Skip(t, "SeaBIOS is not installed: %v", err)
	}
	return path
}

// TestBootBIOS: SeaBIOS starts an image's boot sector, and from there on SYSLINUX
// and Linux by its 16-bit entry, with several CPUs, ACPI and SMBIOS.
func TestBootBIOS(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a machine on the software CPU")
	}
	cfg := Config{
		Name: "bios", CPUs: 2, RAM: 512 << 20, Accel: AccelSoft, Firmware: &Firmware{Code: seaBIOS(t), BIOS: true},
		Disks: []Disk{{Path: biosDisk(t), Format: FormatRaw}},
	}
	if end := converse(t.Context(), t, cfg, 3*time.Minute, step{text: "SYSLINUX 6"}, step{text: "BOOTED"}, step{text: "by.bios"}); end != EndPowerOff {
		t.Errorf("end %d instead of a power-off", end)
	}
}

// TestFirmwareErrors: a machine says in one sentence what is wrong with its
// flash files.
func TestFirmwareErrors(t *testing.T) {
	dir := t.TempDir()
	put := func(name string, size int) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, bytes.Repeat([]byte{0x90}, size), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	code, odd := put("code.fd", 1<<20-1<<16), put("odd.fd", 1000)
	for _, c := range []struct {
		f    Firmware
		want string
	}{
		{Firmware{Code: filepath.Join(dir, "none.fd")}, "cannot open the firmware"},
		{Firmware{Code: odd}, "no multiple of 4 KiB"},
		{Firmware{Code: code, Vars: filepath.Join(dir, "none.fd")}, "cannot open the variable store"},
		{Firmware{Code: code, Vars: put("vars.fd", 1<<16)}, "not a variable store"},
		{Firmware{Code: code, Items: []FirmwareItem{{Name: strings.Repeat("n", 56)}}}, "1 to 55 bytes"},
		{Firmware{Code: code, SMM: true}, "System Management Mode"},
	} {
		_, err := New(Config{CPUs: 1, RAM: 64 << 20, Accel: AccelSoft, Firmware: &c.f})
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%+v: %v, want %q", c.f, err, c.want)
		}
	}
}
