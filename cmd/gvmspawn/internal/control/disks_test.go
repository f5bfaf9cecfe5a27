package control

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/varlink"
)

// fakeDisks are disks that go as soon as they are asked.
type fakeDisks struct {
	disks []Disk
	last  string // what the image last added holds
	err   error
}

func (f *fakeDisks) AddDisk(d Disk) (string, error) {
	defer d.File.Close()
	if d.ID == "" {
		d.ID = "bd7"
	}
	for _, o := range f.disks {
		if o.ID == d.ID {
			return "", ErrDiskExists
		}
	}
	if f.err != nil {
		return "", f.err
	}
	b, err := io.ReadAll(d.File)
	f.last = string(b)
	f.disks = append(f.disks, d)
	return d.ID, err
}

func (f *fakeDisks) RemoveDisk(id string) error {
	for i, d := range f.disks {
		if d.ID == id {
			f.disks = append(f.disks[:i], f.disks[i+1:]...)
			return nil
		}
	}
	return ErrNoDisk
}

func (f *fakeDisks) Disks() []Disk { return f.disks }

func image(t *testing.T, content string) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// TestDisks is the hot-plug test of vmspawn.md §4, as far as the socket goes.
func TestDisks(t *testing.T) {
	f, _, path := start(t)
	ctx := t.Context()
	if all, err := ListDisks(ctx, path); err != nil || len(all) != 0 {
		t.Errorf("%v %v", all, err)
	}
	for _, d := range []Disk{
		{ID: "vl-direct", Format: "raw", Driver: "virtio_blk"}, {ID: "nvme-test", Format: "raw", Driver: "nvme", ReadOnly: true},
		{ID: "scsi-test", Format: "qcow2", Driver: "scsi_hd", Serial: "SCSI01", Discard: true}, {Format: "raw", Driver: "scsi_cd"},
	} {
		d.File = image(t, "content of "+d.Driver)
		id, err := AddDisk(ctx, path, d)
		if err != nil || d.ID != "" && id != d.ID || d.ID == "" && id != "bd7" || f.last != "content of "+d.Driver {
			t.Errorf("%q %v %q", id, err, f.last)
		}
	}
	if d := f.disks[2]; d.Serial != "SCSI01" || !d.Discard || d.ReadOnly {
		t.Errorf("%+v", d)
	}
	all, err := ListDisks(ctx, path)
	if err != nil || len(all) != 4 || all[1] != (Disk{ID: "nvme-test", Format: "raw", Driver: "nvme", ReadOnly: true}) {
		t.Errorf("%+v %v", all, err)
	}
	const i = "io.systemd.VirtualMachineInstance."
	wantError(t, i+"BlockDeviceIdInUse", second(AddDisk(ctx, path, Disk{ID: "nvme-test", Format: "raw", Driver: "nvme", File: image(t, "")})))
	wantError(t, i+"NoSuchBlockDevice", RemoveDisk(ctx, path, "does-not-exist-12345"))
	for _, id := range []string{"vl-direct", "nvme-test", "scsi-test", "bd7"} {
		if err := RemoveDisk(ctx, path, id); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
	for err, want := range map[error]string{
		ErrDiskInUse: i + "BlockBackendBusy", ErrDiskIsFixed: i + "BlockBackendBusy", ErrNotRunning: errNotConnected,
		errors.New("why"): "io.gvmspawn.Machine.DiskRefused",
	} {
		f.err = err
		wantError(t, want, second(AddDisk(ctx, path, Disk{Format: "raw", Driver: "nvme", File: image(t, "")})))
	}
}

func second(_ string, err error) error { return err }

func wantError(t *testing.T, want string, err error) {
	t.Helper()
	var e *varlink.Error
	if !errors.As(err, &e) || e.Name != want {
		t.Errorf("%v, want %s", err, want)
	}
}

// TestBadDisks: parameters that cannot be, and files that did not come.
func TestBadDisks(t *testing.T) {
	f, _, path := start(t)
	const add, invalid, badID = "io.systemd.VirtualMachineInstance.AddBlockDevice", varlink.ErrInvalidParameter, "io.systemd.VirtualMachineInstance.InvalidBlockDeviceId"
	for _, c := range []struct{ method, in, want string }{
		{add, `{"format":"raw","driver":"nvme"}`, invalid},
		{add, `{"fileDescriptor":1,"format":"raw","driver":"nvme"}`, invalid},
		{add, `{"fileDescriptor":-1,"format":"raw","driver":"nvme"}`, invalid},
		{add, `{"fileDescriptor":0,"format":"vmdk","driver":"nvme"}`, invalid},
		{add, `{"fileDescriptor":0,"format":"raw","driver":"ide"}`, invalid},
		{add, `{"fileDescriptor":0,"format":"raw","driver":"nvme","id":""}`, badID},
		{add, `{"fileDescriptor":0,"format":"raw","driver":"nvme","id":"7up"}`, badID},
		{add, `{"fileDescriptor":0,"format":"raw","driver":"nvme","id":"a/b"}`, badID},
		{add, `{"fileDescriptor":0,"format":"raw","driver":"nvme","id":"` + strings.Repeat("a", 65) + `"}`, badID},
		{add, `{"fileDescriptor":0,"format":"raw","driver":"nvme","colour":"red"}`, invalid},
		{"io.systemd.MachineInstance.AddStorage", `{"fileDescriptorIndex":0,"name":"volume"}`, invalid},
		{"io.systemd.MachineInstance.AddStorage", `{"fileDescriptorIndex":0,"name":"a:b","config":"floppy"}`, "io.systemd.MachineInstance.BadConfig"},
		{"io.systemd.MachineInstance.RemoveStorage", `{"name":"a:b"}`, "io.systemd.MachineInstance.NoSuchStorage"},
		{"io.systemd.MachineInstance.ReplaceStorage", `{"fileDescriptorIndex":0,"name":"a:b"}`, "io.systemd.MachineInstance.NotSupported"},
	} {
		cl, err := varlink.Dial(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		wantError(t, c.want, cl.CallWithFile(t.Context(), c.method, image(t, "x"), json.RawMessage(c.in), nil))
		cl.Close()
	}
	cl, err := varlink.Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if err := cl.CallWithFile(t.Context(), "io.systemd.MachineInstance.AddStorage", image(t, "x"), map[string]any{"fileDescriptorIndex": 0, "name": "fs:vol", "config": "nvme"}, nil); err != nil || f.disks[0].ID != "fs:vol" || f.disks[0].Driver != "nvme" {
		t.Errorf("%v %+v", err, f.disks)
	}
	wantError(t, "io.systemd.MachineInstance.StorageExists", cl.CallWithFile(t.Context(), "io.systemd.MachineInstance.AddStorage", image(t, "x"), map[string]any{"fileDescriptorIndex": 0, "name": "fs:vol"}, nil))
}
