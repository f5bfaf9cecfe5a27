package vmm_test

import (
	"encoding/json"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/gvmspawn/gvmspawn/"

// importTable is the direction of imports: a package, by the first row whose
// pattern matches, may import the packages that match one of the patterns
// behind it. Within a row's own folder everything is allowed. Every package
// may use the standard library and golang.org/x/sys.
var importTable = []struct {
	pkg     string
	own     []string // packages of this module
	modules []string // other modules, each with its reason in the commit
}{
	{"cmd/gvmspawn/internal/firmware", []string{"firmware/uefi", "cmd/gvmspawn/internal/arg"}, nil}, // files that no machine has open
	{"cmd/gvmspawn/internal/*", []string{"cmd/gvmspawn/internal/*"}, []string{
		"golang.org/x/term", "golang.org/x/crypto", "golang.org/x/net", "github.com/spf13/pflag", "github.com/coreos/go-systemd/v22",
		"github.com/godbus/dbus/v5", "github.com/diskfs/go-diskfs", "github.com/mdlayher/vsock"}},
	{"cmd/gvmspawn", []string{"vmm", "firmware/uefi", "cmd/gvmspawn/internal/*"}, []string{
		"golang.org/x/term", "golang.org/x/crypto", "github.com/spf13/pflag"}},
	{"bench", []string{"*"}, []string{"*"}},
	{"bench/*", []string{"*"}, []string{"*"}},
	{"vmm/guesttest/attest", nil, []string{"github.com/google/go-tpm", "github.com/google/go-tpm-tools", "google.golang.org/protobuf"}},
	{"vmm/guesttest/*", []string{"vmm/guesttest/*"}, []string{"github.com/mdlayher/vsock", "github.com/google/go-tpm"}}, // the guest's side
	{"vmm/guesttest", []string{"vmm", "boot/*"}, []string{"github.com/u-root/u-root", "github.com/therootcompany/xz"}},
	{"vmm/layout", nil, nil},
	{"vmm/mem", nil, nil},
	{"vmm/disk*", []string{"vmm/disk*"}, []string{"github.com/klauspost/compress"}},
	{"vmm/bus", nil, nil},
	{"vmm/bus/bustest", []string{"vmm/bus"}, nil},
	{"vmm/vcpu", []string{"vmm/bus"}, nil},
	{"vmm/gdb", []string{"vmm/vcpu", "vmm/mem"}, nil},
	{"vmm/kvm", []string{"vmm/vcpu", "vmm/mem", "vmm/bus", "vmm/layout"}, nil},
	{"vmm/soft*", []string{"vmm/soft*", "vmm/vcpu", "vmm/mem", "vmm/bus", "vmm/layout", "devices/lapic", "devices/ioapic"}, nil},
	{"vmm", []string{"vmm/*", "boot/*", "firmware/*", "virtio", "virtio/*", "devices/*"}, nil},
	{"boot/*", []string{"boot/*", "vmm/mem", "vmm/vcpu", "vmm/layout"}, []string{
		"github.com/u-root/u-root", "github.com/klauspost/compress", "github.com/pierrec/lz4/v4",
		"github.com/therootcompany/xz", "github.com/ulikunitz/xz"}},
	{"firmware/acpi", []string{"firmware/acpi/aml", "vmm/mem", "vmm/vcpu", "vmm/layout"}, nil},
	{"firmware/*", []string{"vmm/mem", "vmm/vcpu", "vmm/layout"}, nil},
	{"virtio/virtiotest", []string{"virtio", "virtio/virtq", "virtio/virtq/virtqtest", "vmm/mem"}, nil},
	{"virtio/virtq/virtqtest", []string{"virtio", "virtio/virtq", "vmm/mem", "vmm/bus"}, nil},
	{"virtio/virtq", []string{"vmm/mem"}, nil},
	{"virtio/virtiopci", []string{"virtio", "virtio/virtq", "devices/pci", "vmm/bus", "vmm/mem"}, nil},
	{"virtio/virtiommio", []string{"virtio", "virtio/virtq", "vmm/bus", "vmm/mem"}, nil},
	{"virtio/blk", []string{"virtio", "virtio/virtq", "vmm/mem", "vmm/disk"}, nil},
	{"virtio/scsi", []string{"virtio", "virtio/virtq", "vmm/mem", "vmm/disk"}, nil},
	{"virtio/net*", []string{"virtio", "virtio/virtq", "virtio/net*", "vmm/mem"}, []string{
		"gvisor.dev/gvisor", "github.com/insomniacslk/dhcp", "golang.org/x/net"}},
	{"virtio/*", []string{"virtio", "virtio/virtq", "vmm/mem"}, []string{"github.com/hanwen/go-fuse/v2"}},
	{"virtio", []string{"virtio/virtq", "vmm/bus", "vmm/mem"}, nil},
	{"devices/nvme", []string{"devices/pci", "vmm/bus", "vmm/mem", "vmm/disk"}, nil},
	{"devices/*", []string{"vmm/bus", "vmm/mem", "vmm/layout"}, nil},
}

// match is path.Match, but a final * matches any number of elements.
func match(pattern, name string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(name, prefix)
	}
	ok, _ := path.Match(pattern, name)
	return ok
}

func matchAny(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return match(p, name) })
}

// allowed reports whether package from may import package to.
func allowed(from, to string) bool {
	for _, row := range importTable {
		if !match(row.pkg, from) {
			continue
		}
		if own, ok := strings.CutPrefix(to, module); ok {
			return matchAny(row.own, own)
		}
		if strings.HasPrefix(to, "golang.org/x/sys/") {
			return true
		}
		return slices.ContainsFunc(row.modules, func(m string) bool { return m == "*" || to == m || strings.HasPrefix(to, m+"/") })
	}
	return false
}

// TestImportTable holds every package to the direction of imports.
func TestImportTable(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,GoFiles", module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Imports    []string
			GoFiles    []string
		}
		if err := dec.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		from := strings.TrimPrefix(p.ImportPath, module)
		for _, to := range p.Imports {
			std := !strings.Contains(strings.SplitN(to, "/", 2)[0], ".")
			if !std && !allowed(from, to) {
				t.Errorf("%s must not import %s", from, strings.TrimPrefix(to, module))
			}
			if to == "unsafe" && !hasUnsafeFile(p.GoFiles) {
				t.Errorf("%s imports unsafe outside a *_unsafe.go file", from)
			}
		}
	}
}

// hasUnsafeFile reports whether one of the files may import unsafe.
func hasUnsafeFile(files []string) bool {
	return slices.ContainsFunc(files, func(f string) bool {
		return strings.HasSuffix(f, "_unsafe.go") || strings.HasSuffix(f, "_unsafe_linux.go") || strings.HasSuffix(f, "_unsafe_amd64.go")
	})
}
