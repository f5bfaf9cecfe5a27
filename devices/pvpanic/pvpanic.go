// Package pvpanic is the device by which a guest's kernel reports its panic:
// one port, QEMU's pvpanic (docs/specs/pvpanic.rst), which Linux and others drive.
package pvpanic

import "github.com/gvmspawn/gvmspawn/vmm/bus"

// Events, as read from the port, which tells those that the machine hears of,
// and written to it.
const (
	// Panicked: the kernel has given up.
	Panicked = 1 << 0
	// CrashLoaded: it has, and another kernel will now save its memory.
	CrashLoaded = 1 << 1

	// Size is how many ports there are.
	Size = 1
)

// Device is the port. It implements bus.Device and has no state. Its function
// is called on the CPU's thread for each report of a panic that nobody takes
// care of; it must not block.
type Device struct {
	Func func()
}

// Read implements bus.Device.
func (d *Device) Read(_ uint64, size int) uint64 {
	return Panicked | CrashLoaded | bus.Ones(size)&^0xff
}

// Write implements bus.Device.
func (d *Device) Write(_ uint64, _ int, v uint64) {
	if v&Panicked != 0 && v&CrashLoaded == 0 {
		d.Func()
	}
}
