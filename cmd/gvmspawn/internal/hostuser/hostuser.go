// Package hostuser looks up users of the host and describes them to a guest as
// JSON user records (systemd.io, "JSON User Records"), so that they can log in
// there.
package hostuser

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// FirstID to LastID are the ids in the guest (systemd's "map container users").
const (
	FirstID = 60514
	LastID  = 60577
)

// User is a user of the host.
type User struct {
	Name, RealName, Home, Shell string
	UID, GID                    uint32
	// HashedPassword is "" if it is locked or may not be read.
	HashedPassword string
	AuthorizedKeys []string
}

// Files that users are looked up in.
var (
	passwdFile = "/etc/passwd"
	shadowFile = "/etc/shadow"
)

// maxFile bounds what is read of each, in bytes.
const maxFile = 1 << 20

// Lookup finds a user by name: in /etc/passwd, else by getent(1), which knows
// the other services.
func Lookup(name string) (*User, error) {
	line := find(passwdFile, name)
	if line == "" {
		if out, err := exec.Command("getent", "--", "passwd", name).Output(); err == nil {
			line = strings.TrimSpace(string(out))
		}
	}
	f := strings.Split(line, ":")
	if len(f) != 7 || f[0] != name {
		return nil, fmt.Errorf("there is no user '%s' on this host", name)
	}
	uid, err1 := strconv.ParseUint(f[2], 10, 32)
	gid, err2 := strconv.ParseUint(f[3], 10, 32)
	if err1 != nil || err2 != nil {
		return nil, fmt.Errorf("the entry of user '%s' is damaged", name)
	}
	if uid == 0 {
		return nil, errors.New("root of the host cannot be a user of the guest")
	}
	realName, _, _ := strings.Cut(f[4], ",")
	u := &User{Name: name, RealName: realName, Home: f[5], Shell: f[6], UID: uint32(uid), GID: uint32(gid)}
	if s := strings.Split(find(shadowFile, name), ":"); len(s) > 1 && len(s[1]) > 1 && s[1][0] != '!' && s[1][0] != '*' {
		u.HashedPassword = s[1]
	}
	u.AuthorizedKeys = authorizedKeys(filepath.Join(u.Home, ".ssh/authorized_keys"))
	return u, nil
}

// find returns the line of a user in a file of fields, or "".
func find(file, name string) string {
	for line := range strings.Lines(read(file)) {
		if strings.HasPrefix(line, name+":") {
			return strings.TrimSuffix(line, "\n")
		}
	}
	return ""
}

// read returns a regular file's content, or "" if it cannot be read. It does
// not follow a link in its last part: the file may be in another's home.
func read(path string) string {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return ""
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return ""
	}
	return string(b)
}

func authorizedKeys(path string) []string {
	var keys []string
	for line := range strings.Lines(read(path)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			keys = append(keys, line)
		}
	}
	return keys
}

// Guest says what becomes of a user in the guest.
type Guest struct {
	ID     uint32 // of user and group
	Home   string
	Shell  string // "" for the guest's default
	Groups []string
}

// userRecord and groupRecord are the fields of the records that we use.
type userRecord struct {
	UserName      string      `json:"userName"`
	UID           uint32      `json:"uid"`
	GID           uint32      `json:"gid"`
	RealName      string      `json:"realName,omitempty"`
	HomeDirectory string      `json:"homeDirectory"`
	Shell         string      `json:"shell,omitempty"`
	MemberOf      []string    `json:"memberOf,omitempty"`
	Disposition   string      `json:"disposition"`
	Service       string      `json:"service"`
	Privileged    *privileged `json:"privileged,omitempty"`
}

type privileged struct {
	HashedPassword    []string `json:"hashedPassword,omitempty"`
	SSHAuthorizedKeys []string `json:"sshAuthorizedKeys,omitempty"`
}

type groupRecord struct {
	GroupName   string `json:"groupName"`
	GID         uint32 `json:"gid"`
	Description string `json:"description,omitempty"`
	Disposition string `json:"disposition"`
	Service     string `json:"service"`
}

const (
	disposition = "container"
	service     = "io.systemd.VMSpawn"
)

// Records returns the user's and its group's record.
func (u *User) Records(g Guest) (user, group []byte, err error) {
	r := userRecord{UserName: u.Name, UID: g.ID, GID: g.ID, RealName: u.RealName, HomeDirectory: g.Home, Shell: g.Shell, MemberOf: g.Groups, Disposition: disposition, Service: service}
	if u.HashedPassword != "" || len(u.AuthorizedKeys) > 0 {
		r.Privileged = &privileged{SSHAuthorizedKeys: u.AuthorizedKeys}
		if u.HashedPassword != "" {
			r.Privileged.HashedPassword = []string{u.HashedPassword}
		}
	}
	if user, err = json.Marshal(r); err != nil {
		return nil, nil, err
	}
	group, err = json.Marshal(groupRecord{u.Name, g.ID, u.RealName, disposition, service})
	return user, group, err
}
