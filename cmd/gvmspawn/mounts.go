package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/arg"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/hostuser"
	"github.com/gvmspawn/gvmspawn/vmm"
)

// addMounts shares what is to be mounted besides the root file system, and
// lets systemd in the guest mount it, by an fstab in the credential
// fstab.extra.
func (p *plan) addMounts() error {
	var fstab strings.Builder
	for _, b := range p.s.binds {
		if err := p.addBind(&fstab, b); err != nil {
			return err
		}
	}
	for i, name := range p.s.bindUsers {
		if err := p.addUser(&fstab, i, name); err != nil {
			return fmt.Errorf("option --bind-user: %w", err)
		}
	}
	if fstab.Len() == 0 {
		return nil
	}
	return p.s.credentials.Append("fstab.extra", []byte(fstab.String()))
}

// mountTag returns the tag of the next share.
func (p *plan) mountTag() string {
	p.mounts++
	return fmt.Sprintf("mnt%d", p.mounts-1)
}

func (p *plan) addBind(fstab *strings.Builder, b arg.Bind) error {
	fi, err := os.Stat(b.Source)
	if err != nil {
		return fmt.Errorf("option --bind: %w", pathError(err))
	}
	tag, mode := p.mountTag(), "rw"
	if b.ReadOnly {
		mode = "ro"
	}
	switch {
	case fi.IsDir():
		fmt.Fprintf(fstab, "%s %s virtiofs %s,x-initrd.mount\n", tag, fstabEscape(b.Target), mode)
	case fi.Mode().IsRegular():
		// A virtio-fs root is a directory: mount it aside and bind the file.
		aside := "/run/vmhost/" + tag
		fmt.Fprintf(fstab, "%s %s virtiofs %s\n", tag, aside, mode)
		fmt.Fprintf(fstab, "%s %s none bind,%s,x-systemd.requires-mounts-for=%s\n", fstabEscape(filepath.Join(aside, filepath.Base(b.Source))), fstabEscape(b.Target), mode, aside)
	default:
		return fmt.Errorf("option --bind: %s is neither a directory nor a regular file", b.Source)
	}
	p.cfg.Shares = append(p.cfg.Shares, vmm.Share{Tag: tag, Path: b.Source, ReadOnly: b.ReadOnly})
	return nil
}

// addUser shares a user's home directory and describes the user to the guest.
func (p *plan) addUser(fstab *strings.Builder, i int, name string) error {
	u, err := hostuser.Lookup(name)
	if err != nil {
		return err
	}
	id := uint32(hostuser.FirstID + i)
	if id > hostuser.LastID {
		return errors.New("too many users")
	}
	g := hostuser.Guest{ID: id, Home: "/run/vmhost/home/" + name, Shell: p.s.bindUserShell, Groups: p.s.bindUserGroups}
	if g.Shell == hostShell {
		g.Shell = u.Shell
	}
	user, group, err := u.Records(g)
	if err != nil {
		return err
	}
	for _, c := range []struct {
		id   string
		data []byte
	}{{"userdb.transient.user." + name, user}, {"userdb.transient.group." + name, group}} {
		if err := p.s.credentials.AddDefault(c.id, c.data); err != nil {
			return err
		}
	}
	tag := p.mountTag()
	fmt.Fprintf(fstab, "%s %s virtiofs rw\n", tag, fstabEscape(g.Home))
	p.cfg.Shares = append(p.cfg.Shares, vmm.Share{Tag: tag, Path: u.Home, Owner: &vmm.ShareOwner{HostUID: u.UID, HostGID: u.GID, Guest: id}})
	return nil
}

// fstabEscape writes what separates fields of an fstab as octal numbers.
func fstabEscape(s string) string {
	return strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`, "#", `\043`).Replace(s)
}
