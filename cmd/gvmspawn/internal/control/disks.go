package control

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/varlink"
)

// Disk is a disk of a machine.
type Disk struct {
	ID       string
	Format   string // "raw" or "qcow2"
	Driver   string // "virtio_blk", "scsi_hd", "scsi_cd", "nvme" or, at boot only, "virtio_pmem"
	ReadOnly bool
	Discard  bool
	Serial   string   // empty: as the image's name makes it
	File     *os.File // the image of a disk that is added; Disks closes it
}

// Disks are the disks of a machine, which come and go while it runs. Methods
// may be called from any goroutine.
type Disks interface {
	// AddDisk plugs a disk in and returns its name, which it makes if ID is empty.
	AddDisk(Disk) (id string, err error)
	// RemoveDisk asks the guest to let go of a disk.
	RemoveDisk(id string) error
	// Disks lists all.
	Disks() []Disk
}

// Errors of Disks.
var (
	ErrDiskExists  = errors.New("there is a disk of that name")
	ErrNoDisk      = errors.New("there is no disk of that name")
	ErrDiskInUse   = errors.New("the image is in use")
	ErrDiskIsFixed = errors.New("that disk cannot be removed")
	ErrNotRunning  = errors.New("the machine is not running")
)

// EventDiskRemoved tells that the guest has let go of a disk.
const EventDiskRemoved = "BlockDeviceRemoved"

const disksInterface = "io.systemd.VirtualMachineInstance"

const disksDescription = `# Disks that come and go while a virtual machine runs
interface io.systemd.VirtualMachineInstance

type BlockFormat (raw, qcow2)
type BlockDriver (virtio_blk, nvme, scsi_hd, scsi_cd, virtio_pmem)

# Plugs a disk in. fileDescriptor is the index of a file sent along; one that
# is open for reading only makes the disk read-only
method AddBlockDevice(fileDescriptor: int, format: BlockFormat, driver: BlockDriver, readOnly: ?bool, discard: ?bool, serial: ?string, id: ?string) -> (id: string)
# Asks the guest to let go of a disk. The event BlockDeviceRemoved tells when it has
method RemoveBlockDevice(id: string) -> ()
# With "more": a reply for each disk
method ListBlockDevices() -> (id: ?string, format: ?BlockFormat, driver: ?BlockDriver, readOnly: ?bool)

error NoSuchBlockDevice ()
error BlockDeviceIdInUse ()
error InvalidBlockDeviceId ()
error BlockBackendBusy ()
`

// diskMethods are io.systemd.VirtualMachineInstance, and what later versions
// of systemd put into io.systemd.MachineInstance instead.
func (s *Service) diskMethods() map[string]varlink.Handler {
	return map[string]varlink.Handler{
		disksInterface + ".AddBlockDevice":          s.addBlockDevice,
		disksInterface + ".RemoveBlockDevice":       s.removeBlockDevice,
		disksInterface + ".ListBlockDevices":        s.listBlockDevices,
		"io.systemd.MachineInstance.AddStorage":     s.addStorage,
		"io.systemd.MachineInstance.RemoveStorage":  s.removeStorage,
		"io.systemd.MachineInstance.ReplaceStorage": notSupported,
	}
}

func notSupported(context.Context, *varlink.Call) (any, error) {
	return nil, &varlink.Error{Name: "io.systemd.MachineInstance.NotSupported"}
}

func invalid(parameter string) error {
	return &varlink.Error{Name: varlink.ErrInvalidParameter, Parameters: map[string]any{"parameter": parameter}}
}

// diskError is the error reply for what Disks says.
func diskError(err error, storage bool) error {
	name := func(block, volume string) error {
		if storage {
			return &varlink.Error{Name: "io.systemd.MachineInstance." + volume}
		}
		return &varlink.Error{Name: disksInterface + "." + block}
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrDiskExists):
		return name("BlockDeviceIdInUse", "StorageExists")
	case errors.Is(err, ErrNoDisk):
		return name("NoSuchBlockDevice", "NoSuchStorage")
	case errors.Is(err, ErrDiskInUse):
		return &varlink.Error{Name: disksInterface + ".BlockBackendBusy"}
	case errors.Is(err, ErrDiskIsFixed):
		return name("BlockBackendBusy", "StorageImmutable")
	case errors.Is(err, ErrNotRunning):
		return &varlink.Error{Name: errNotConnected}
	}
	return &varlink.Error{Name: "io.gvmspawn.Machine.DiskRefused", Parameters: map[string]any{"reason": err.Error()}}
}

// validID reports whether a name is one that QEMU takes, which systemd's must be:
// a letter, then letters, digits and "-._".
func validID(id string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	return id != "" && len(id) <= 64 && strings.ContainsRune(letters, rune(id[0])) && strings.Trim(id, letters+"0123456789-._") == ""
}

var drivers = map[string]string{"virtio-blk": "virtio_blk", "virtio-scsi": "scsi_hd", "scsi-cd": "scsi_cd", "nvme": "nvme"}

func knownDriver(d string) bool {
	for _, v := range drivers {
		if v == d {
			return true
		}
	}
	return false
}

func (s *Service) addBlockDevice(_ context.Context, c *varlink.Call) (any, error) {
	var in struct {
		FileDescriptor *int    `json:"fileDescriptor"`
		Format         string  `json:"format"`
		Driver         string  `json:"driver"`
		ReadOnly       bool    `json:"readOnly"`
		Discard        bool    `json:"discard"`
		Serial         string  `json:"serial"`
		ID             *string `json:"id"`
	}
	if err := c.Parameters(&in); err != nil {
		return nil, err
	}
	d := Disk{Format: in.Format, Driver: in.Driver, ReadOnly: in.ReadOnly, Discard: in.Discard, Serial: in.Serial}
	switch {
	case in.FileDescriptor == nil:
		return nil, invalid("fileDescriptor")
	case in.Format != "raw" && in.Format != "qcow2":
		return nil, invalid("format")
	case !knownDriver(in.Driver):
		return nil, invalid("driver")
	case in.ID != nil && !validID(*in.ID):
		return nil, &varlink.Error{Name: disksInterface + ".InvalidBlockDeviceId"}
	}
	if in.ID != nil {
		d.ID = *in.ID
	}
	if d.File = c.TakeFile(*in.FileDescriptor); d.File == nil {
		return nil, invalid("fileDescriptor")
	}
	id, err := s.m.AddDisk(d)
	if err != nil {
		return nil, diskError(err, false)
	}
	return map[string]any{"id": id}, nil
}

func (s *Service) removeBlockDevice(_ context.Context, c *varlink.Call) (any, error) {
	var in struct {
		ID string `json:"id"`
	}
	if err := c.Parameters(&in); err != nil {
		return nil, err
	}
	return nil, diskError(s.m.RemoveDisk(in.ID), false)
}

// listed is a reply of ListBlockDevices.
type listed struct {
	ID       string `json:"id"`
	Format   string `json:"format"`
	Driver   string `json:"driver"`
	ReadOnly bool   `json:"readOnly"`
}

func (s *Service) listBlockDevices(_ context.Context, c *varlink.Call) (any, error) {
	if err := c.Parameters(&struct{}{}); err != nil {
		return nil, err
	}
	all := s.m.Disks()
	if len(all) == 0 {
		return nil, nil
	}
	if !c.More() && len(all) > 1 {
		return nil, &varlink.Error{Name: varlink.ErrExpectedMore}
	}
	for i, d := range all {
		l := listed{d.ID, d.Format, d.Driver, d.ReadOnly}
		if i == len(all)-1 {
			return l, nil
		}
		if err := c.Continue(l); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// addStorage is what machinectl bind-volume calls: a raw volume by the name
// PROVIDER:VOLUME, whose configuration is a type of disk.
func (s *Service) addStorage(_ context.Context, c *varlink.Call) (any, error) {
	var in struct {
		Index  *int   `json:"fileDescriptorIndex"`
		Name   string `json:"name"`
		Config string `json:"config"`
	}
	if err := c.Parameters(&in); err != nil {
		return nil, err
	}
	provider, volume, ok := strings.Cut(in.Name, ":")
	driver := "virtio_blk"
	if in.Config != "" {
		driver = drivers[in.Config]
	}
	switch {
	case in.Index == nil:
		return nil, invalid("fileDescriptorIndex")
	case !ok || provider == "" || volume == "" || len(in.Name) > 255:
		return nil, invalid("name")
	case driver == "":
		return nil, &varlink.Error{Name: "io.systemd.MachineInstance.BadConfig"}
	}
	d := Disk{ID: in.Name, Format: "raw", Driver: driver, Discard: true, File: c.TakeFile(*in.Index)}
	if d.File == nil {
		return nil, invalid("fileDescriptorIndex")
	}
	_, err := s.m.AddDisk(d)
	return nil, diskError(err, true)
}

func (s *Service) removeStorage(_ context.Context, c *varlink.Call) (any, error) {
	var in struct {
		Name string `json:"name"`
	}
	if err := c.Parameters(&in); err != nil {
		return nil, err
	}
	return nil, diskError(s.m.RemoveDisk(in.Name), true)
}

// AddDisk plugs d into the machine and returns its name.
func AddDisk(ctx context.Context, socket string, d Disk) (id string, err error) {
	c, err := varlink.Dial(ctx, socket)
	if err != nil {
		return "", err
	}
	defer c.Close()
	in := map[string]any{"fileDescriptor": 0, "format": d.Format, "driver": d.Driver, "readOnly": d.ReadOnly, "discard": d.Discard}
	if d.ID != "" {
		in["id"] = d.ID
	}
	if d.Serial != "" {
		in["serial"] = d.Serial
	}
	var out struct {
		ID string `json:"id"`
	}
	err = c.CallWithFile(ctx, disksInterface+".AddBlockDevice", d.File, in, &out)
	return out.ID, err
}

// RemoveDisk asks the guest to let go of a disk.
func RemoveDisk(ctx context.Context, socket, id string) error {
	c, err := varlink.Dial(ctx, socket)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Call(ctx, disksInterface+".RemoveBlockDevice", map[string]string{"id": id}, nil)
}

// ListDisks lists a machine's disks.
func ListDisks(ctx context.Context, socket string) ([]Disk, error) {
	c, err := varlink.Dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var all []Disk
	err = c.CallMore(ctx, disksInterface+".ListBlockDevices", nil, func(raw json.RawMessage) error {
		var l listed
		if err := json.Unmarshal(raw, &l); err != nil {
			return err
		}
		if l.ID != "" {
			all = append(all, Disk{ID: l.ID, Format: l.Format, Driver: l.Driver, ReadOnly: l.ReadOnly})
		}
		return nil
	})
	return all, err
}
