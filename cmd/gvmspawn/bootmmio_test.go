package main

import (
	"path/filepath"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// mmioInit is the init of a guest without PCI.
const mmioInit = `
is pci "$(ls /sys/bus/pci/devices 2>/dev/null | wc -l)" 0
is root "$(awk '$2=="/"{print $3}' /proc/mounts | tail -n 1)" virtiofs
is cpus "$(nproc)" 2
is devices "$(cat /sys/bus/virtio/devices/*/device | sort | tr '\n' ' ')" "0x0001 0x0002 0x0003 0x0004 0x0005 0x0013 0x001a "
case "$(cat /proc/cmdline)" in *ring=packed*) packed=1 ;; *) packed=0 ;; esac
is ring "$(for f in /sys/bus/virtio/devices/*/features; do cut -c 35 $f; done | sort -u)" $packed
is interrupts "$(grep -c 'virtio[0-9]' /proc/interrupts)" 7
dd if=/dev/urandom of=/data bs=1M count=4 2>/dev/null
dd if=/data of=/dev/vda bs=64k conv=fsync 2>/dev/null; echo 3 >/proc/sys/vm/drop_caches
is disk "$(dd if=/dev/vda bs=64k count=64 2>/dev/null | md5sum)" "$(md5sum </data)"
is entropy "$(head -c 64 /dev/hwrng | wc -c)" 64
ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0
ping -c 1 -W 5 10.0.2.2 >/dev/null; is ping $? 0
`

// TestBootMMIO boots machines without PCI: libkrunfw's kernel, which has neither PCI
// nor ACPI and finds its devices on the command line and its CPUs in MP tables,
// and Debian's, which finds them by ACPI. The latter has packed rings, in all devices.
func TestBootMMIO(t *testing.T) {
	debian := softBoot(t, "kernel-trixie")
	for _, c := range []struct {
		name   string
		kernel guesttest.Kernel
		end    string
		args   []string
	}{
		{"without ACPI", guesttest.Kernel{Path: guesttest.KrunKernel(t)}, "echo DONE; sleep 1000", []string{"quiet"}},
		{"ACPI, packed rings", debian, "poweroff -f", []string{"--virtio-ring=packed", "quiet", "ring=packed"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			tree := guestTree(t, mmioInit+c.end)
			disk := filepath.Join(dir, "disk")
			writeFile(t, disk, make([]byte, 8<<20), 0o600)
			m := newMachine(t, dir, c.kernel, append([]string{"-D", tree, "--cpus=2", "--virtio-transport=mmio", "--network-user-mode", "--extra-drive=" + disk}, c.args...)...)
			m.start()
			if c.end == "poweroff -f" {
				if s := m.status(); s != 0 {
					t.Errorf("status %d", s)
				}
			} else {
				m.waitFor("DONE") // a kernel without ACPI cannot power off
			}
			m.check("pci", "root", "cpus", "devices", "ring", "interrupts", "disk", "entropy", "ping")
		})
	}
}
