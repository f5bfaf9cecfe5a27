package vmm

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// smallUKI is a unified kernel image with guesttest.SmallInitrd.
func smallUKI(t testing.TB) string {
	t.Helper()
	return guesttest.LinuxUKI(t, guesttest.KernelAsset(t, "kernel-trixie").Path, guesttest.SmallInitrd(t), "console=ttyS0 quiet panic=-1")
}

// bootsBy boots a machine by firmware to the end of smallUKI.
func bootsBy(t *testing.T, cfg Config) {
	t.Helper()
	code, vars := ovmf(t)
	cfg.Name, cfg.CPUs, cfg.RAM, cfg.Accel = "boots", 1, 512<<20, AccelSoft
	if cfg.Firmware == nil {
		cfg.Firmware = &Firmware{}
	}
	cfg.Firmware.Code, cfg.Firmware.Vars = code, vars
	if end := converse(t.Context(), t, cfg, 5*time.Minute, step{text: "BOOTED 64"}); end != EndPowerOff {
		t.Errorf("end %d instead of a power-off", end)
	}
}

// TestLongFirmwareBuses: OVMF boots the first disk that has a boot loader, on each
// bus, whatever stands before it.
func TestLongFirmwareBuses(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("set GVMSPAWN_LONG=1")
	}
	uki := smallUKI(t)
	disk := guesttest.EFIDisk(t, uki, t.TempDir(), 2)
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, disks := range map[string][]Disk{
		"virtio-scsi":               {{Path: disk, Bus: DiskVirtioSCSI}},
		"NVMe":                      {{Path: disk, Bus: DiskNVMe}},
		"CD-ROM":                    {{Path: bootableISO(t, uki), Bus: DiskCDROM}},
		"NVMe behind an empty disk": {{Path: empty}, {Path: disk, Bus: DiskNVMe}},
	} {
		t.Run(name, func(t *testing.T) { bootsBy(t, Config{Disks: disks}) })
	}
}

// TestLongFirmwareShare: OVMF's virtio-fs driver reads the boot loader of a
// directory.
func TestLongFirmwareShare(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("set GVMSPAWN_LONG=1")
	}
	dir := t.TempDir()
	boot := filepath.Join(dir, "EFI/BOOT")
	if err := os.MkdirAll(boot, 0o755); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(smallUKI(t))
	if err == nil {
		err = os.WriteFile(filepath.Join(boot, "BOOTX64.EFI"), data, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	bootsBy(t, Config{Shares: []Share{{Tag: "root", Path: dir}}, Firmware: &Firmware{AnyOrder: true}})
}

// bootableISO makes a CD-ROM image whose El Torito catalog (specification 1.0)
// names a FAT file system with the program that firmware starts. Its ISO 9660
// file system is empty.
func bootableISO(t testing.TB, program string) string {
	t.Helper()
	const (
		sector                           = 2048
		volume, bootRecord, end, catalog = 16, 17, 18, 19
		root                             = 20
		image                            = 24
		imageMiB                         = 64
	)
	dir := t.TempDir()
	esp := filepath.Join(dir, "esp")
	if err := os.WriteFile(esp, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(esp, imageMiB<<20); err != nil {
		t.Fatal(err)
	}
	guesttest.Command(t, "", "mformat", "-i", esp, "-F", "::")
	guesttest.Command(t, "", "mmd", "-i", esp, "::/EFI", "::/EFI/BOOT")
	guesttest.Command(t, "", "mcopy", "-i", esp, program, "::/EFI/BOOT/BOOTX64.EFI")
	fat, err := os.ReadFile(esp)
	if err != nil {
		t.Fatal(err)
	}
	iso := make([]byte, image*sector, image*sector+len(fat))
	at := func(n int) []byte { return iso[n*sector : (n+1)*sector] }
	both := func(b []byte, v uint32) { // ECMA-119 §7.3.3
		binary.LittleEndian.PutUint32(b, v)
		binary.BigEndian.PutUint32(b[4:], v)
	}
	blocks := uint32(image + len(fat)/sector)
	pvd := at(volume)
	copy(pvd, "\x01CD001\x01")
	copy(pvd[40:72], "TEST                            ")
	both(pvd[80:], blocks)
	binary.LittleEndian.PutUint16(pvd[128:], sector)
	binary.BigEndian.PutUint16(pvd[130:], sector)
	record := pvd[156:190] // the root directory
	record[0], record[25], record[32] = 34, 2, 1
	both(record[2:], root)
	both(record[10:], sector)
	copy(at(root), record)
	copy(at(root)[34:], record)
	at(root)[34+33] = 1
	boot := at(bootRecord)
	copy(boot, "\x00CD001\x01EL TORITO SPECIFICATION")
	binary.LittleEndian.PutUint32(boot[71:], catalog)
	copy(at(end), "\xffCD001\x01")
	c := at(catalog)
	c[0], c[1], c[30], c[31] = 1, 0xef, 0x55, 0xaa // validation entry, EFI
	sum := uint16(0)
	for i := 0; i < 32; i += 2 {
		sum += binary.LittleEndian.Uint16(c[i:])
	}
	binary.LittleEndian.PutUint16(c[28:], -sum)
	c[32] = 0x88 // initial entry: bootable, no emulation, to the end of the image
	binary.LittleEndian.PutUint32(c[40:], image)
	path := filepath.Join(dir, "cd.iso")
	if err := os.WriteFile(path, append(iso, fat...), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
