package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// firmwareFeatures are the features of QEMU's firmware descriptors
// (docs/interop/firmware.json).
var firmwareFeatures = []string{
	"acpi-s3", "acpi-s4", "amd-sev", "amd-sev-es", "amd-sev-snp", "enrolled-keys", "host-uefi-vars",
	"intel-tdx", "requires-smm", "secure-boot", "verbose-dynamic", "verbose-static",
}

// firmwareDirectories are searched for descriptors, the first wins.
func firmwareDirectories() []string {
	config := os.Getenv("XDG_CONFIG_HOME")
	if config == "" {
		config = filepath.Join(os.Getenv("HOME"), ".config")
	}
	return []string{filepath.Join(config, "qemu/firmware"), "/etc/qemu/firmware", "/usr/share/qemu/firmware"}
}

// listFirmware prints the paths of all firmware descriptors, by file name. A
// file hides those of the same name in later directories; an empty one, or a
// link to /dev/null, only hides.
func listFirmware(w io.Writer, directories []string) {
	paths := map[string]string{}
	for _, dir := range directories {
		found, err := filepath.Glob(filepath.Join(dir, "*.json"))
		if err != nil {
			continue
		}
		for _, p := range found {
			name := filepath.Base(p)
			if _, taken := paths[name]; !taken {
				paths[name] = p
			}
		}
	}
	var names []string
	for name, p := range paths {
		if fi, err := os.Stat(p); err == nil && fi.Mode().IsRegular() && fi.Size() > 0 {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	for _, name := range names {
		fmt.Fprintln(w, paths[name])
	}
}

// listFirmwareFeatures prints the features that --firmware-features= knows.
func listFirmwareFeatures(w io.Writer) { fmt.Fprintln(w, strings.Join(firmwareFeatures, "\n")) }
