package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/arg"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/control"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/instance"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/varlink"
)

// diskErrors are the control socket's answers as sentences.
var diskErrors = map[string]string{
	"BlockDeviceIdInUse":   "it has a disk of that name already",
	"NoSuchBlockDevice":    "it has no disk of that name; list-disks shows all",
	"InvalidBlockDeviceId": "the name must be a letter followed by letters, digits, '-', '.' and '_'",
	"BlockBackendBusy":     "the image is in use, or the disk is one that cannot be removed",
	"NotConnected":         "it is not running",
}

// explain turns an error reply into a sentence.
func explain(err error) error {
	var e *varlink.Error
	if !errors.As(err, &e) {
		return err
	}
	if reason := e.Parameters["reason"]; reason != nil {
		return fmt.Errorf("%v", reason)
	}
	if s := diskErrors[e.Name[strings.LastIndexByte(e.Name, '.')+1:]]; s != "" {
		return errors.New(s)
	}
	return err
}

// attachDisk is "gvmspawn attach-disk NAME [-r] [-i ID] [FORMAT:][TYPE:]PATH".
func (c *command) attachDisk(args []string) (int, error) {
	m, dir, err := machine("attach-disk", args)
	if err != nil {
		return exitFailure, err
	}
	d := control.Disk{Format: "raw", Driver: "virtio_blk", Discard: true}
	rest := args[1:]
	for len(rest) > 1 && (rest[0] == "-r" || rest[0] == "-i" && len(rest) > 2) {
		if rest[0] == "-r" {
			d.ReadOnly, rest = true, rest[1:]
		} else {
			d.ID, rest = rest[1], rest[2:]
		}
	}
	if len(rest) != 1 || strings.HasPrefix(rest[0], "-") {
		return exitFailure, errors.New("attach-disk needs the name of a machine and an image: attach-disk NAME [-r] [-i ID] [FORMAT:][TYPE:]PATH")
	}
	drive, err := arg.ParseDrive(rest[0])
	if err != nil {
		return exitFailure, fmt.Errorf("attach-disk: %w", err)
	}
	if drive.Type == "pmem" {
		return exitFailure, errors.New("attach-disk: persistent memory cannot come while the machine runs, choose another type")
	}
	if drive.Format != "" {
		d.Format = drive.Format
	}
	if drive.Type != "" {
		d.Driver = diskDrivers[diskBus(drive.Type)]
	}
	flags := os.O_RDWR
	if d.ReadOnly || drive.Type == "scsi-cd" {
		flags = os.O_RDONLY
	}
	if d.File, err = os.OpenFile(drive.Path, flags, 0); err != nil {
		return exitFailure, fmt.Errorf("attach-disk: %w", pathError(err))
	}
	defer d.File.Close()
	ctx, cancel := context.WithTimeout(context.Background(), queryTimeout)
	defer cancel()
	id, err := control.AddDisk(ctx, filepath.Join(dir, instance.ControlSocket), d)
	if err != nil {
		return exitFailure, fmt.Errorf("cannot attach %s to machine '%s': %w", drive.Path, m.Name, explain(err))
	}
	fmt.Fprintln(c.stdout, id)
	return 0, nil
}

// detachDisk is "gvmspawn detach-disk NAME ID".
func (c *command) detachDisk(args []string) (int, error) {
	if len(args) != 2 {
		return exitFailure, errors.New("detach-disk needs the name of a machine and of a disk, as list-disks shows them")
	}
	m, dir, err := machine("detach-disk", args)
	if err != nil {
		return exitFailure, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), queryTimeout)
	defer cancel()
	if err := control.RemoveDisk(ctx, filepath.Join(dir, instance.ControlSocket), args[1]); err != nil {
		return exitFailure, fmt.Errorf("cannot detach disk '%s' of machine '%s': %w", args[1], m.Name, explain(err))
	}
	return 0, nil
}

// listDisks is "gvmspawn list-disks NAME".
func (c *command) listDisks(args []string) (int, error) {
	if len(args) != 1 {
		return exitFailure, errors.New("list-disks needs the name of a machine")
	}
	m, dir, err := machine("list-disks", args)
	if err != nil {
		return exitFailure, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), queryTimeout)
	defer cancel()
	all, err := control.ListDisks(ctx, filepath.Join(dir, instance.ControlSocket))
	if err != nil {
		return exitFailure, fmt.Errorf("cannot list the disks of machine '%s': %w", m.Name, explain(err))
	}
	w := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tDRIVER\tFORMAT\tREAD-ONLY")
	for _, d := range all {
		readOnly := "no"
		if d.ReadOnly {
			readOnly = "yes"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", d.ID, d.Driver, d.Format, readOnly)
	}
	return 0, w.Flush()
}
