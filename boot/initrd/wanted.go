package initrd

import "slices"

// helpers are modules that a file system asks for by name when it is mounted,
// which nobody could load then: checksums and character sets.
var helpers = map[string][]string{
	"btrfs": {"crc32c_generic", "xxhash_generic", "sha256_generic", "blake2b_generic"},
	"ext4":  {"crc32c_generic"},
	"f2fs":  {"crc32_generic"},
	"vfat":  {"nls_cp437", "nls_iso8859_1", "nls_ascii", "nls_utf8"},
	"xfs":   {"crc32c_generic"},
}

// Wanted lists the modules of a machine with this root, in the order of
// loading: what leads to the root, the console, and as [Extra] what the host's
// talk with the guest needs (entropy, SMBIOS strings, vsock, the power button and, for logind to hear it, evdev) and
// the drivers of further devices.
func Wanted(root Root, drivers ...string) []Module {
	mods := []Module{
		{Name: "virtio_pci", Driver: "virtio-pci"},
		{Name: "virtio_console", Need: Useful},
	}
	if root.MMIO {
		mods[0] = Module{Name: "virtio_mmio", Driver: "virtio-mmio"}
	}
	mods = append(mods, root.Drivers...)
	if root.Block != nil && root.Block.Size > 0 {
		mods = append(mods, Module{Name: "loop", Driver: "loop"})
	}
	need := Required
	if len(root.Types) > 1 {
		need = Useful // any of them may be the one
	}
	for _, t := range root.Types {
		for _, h := range helpers[t] {
			mods = append(mods, Module{Name: h, Need: Extra})
		}
		mods = append(mods, Module{Name: t, Need: need, Driver: t})
	}
	for _, name := range append([]string{"virtio_rng", "dmi_sysfs", "vmw_vsock_virtio_transport", "button", "evdev"}, drivers...) {
		if !slices.ContainsFunc(mods, func(m Module) bool { return m.Name == name }) {
			mods = append(mods, Module{Name: name, Need: Extra})
		}
	}
	return mods
}
