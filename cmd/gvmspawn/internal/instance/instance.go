// Package instance keeps the runtime directory: one directory for each running
// machine, with its control socket, its keys and a file that says what it is.
// A lock held by the machine's process tells live ones from what a killed
// process left; the next start of that name, or a listing, cleans that up.
package instance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/arg"
)

// Names in a machine's directory.
const (
	ControlSocket = "control"
	VsockSocket   = "vsock"
	ConsoleSocket = "console"
	TPMState      = "tpm"
	lockFile      = "lock"
	stateFile     = "machine.json"
)

// maxSocketPath is sizeof(sockaddr_un.sun_path) without its NUL; all sockets'
// names are at most as long as ControlSocket.
const maxSocketPath = 107

// ErrRunning is returned by Claim for a name in use.
var ErrRunning = errors.New("a machine of that name is running already")

// State is what a machine tells about itself.
type State struct {
	Name    string    `json:"name"`
	PID     int       `json:"pid"`
	Image   string    `json:"image"`
	CID     uint32    `json:"cid,omitempty"`
	SSHKey  string    `json:"sshKey,omitempty"` // path of the private key
	Started time.Time `json:"started"`
}

// Base is the directory that holds the machines' directories.
func Base() (string, error) {
	if dir := os.Getenv("RUNTIME_DIRECTORY"); filepath.IsAbs(dir) {
		return filepath.Clean(dir), nil
	}
	if os.Geteuid() == 0 {
		return "/run/systemd/vmspawn", nil
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "systemd/vmspawn"), nil
	}
	// Without a login session: a directory in /tmp that is ours alone.
	dir := filepath.Join(os.TempDir(), "gvmspawn-"+strconv.Itoa(os.Geteuid()))
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0 {
		return "", fmt.Errorf("%s is not a directory of ours alone, set $XDG_RUNTIME_DIR", dir)
	}
	return dir, nil
}

// Instance is the directory of a machine of ours.
type Instance struct {
	Dir  string
	lock *os.File
}

// Claim makes the directory of a machine. What a dead process left in it is
// removed; ErrRunning is returned if the process lives.
func Claim(base, name string) (*Instance, error) {
	if err := arg.MachineName(name); err != nil {
		return nil, err
	}
	dir := filepath.Join(base, name)
	if len(dir)+1+len(ControlSocket) > maxSocketPath {
		return nil, fmt.Errorf("%s is too long for the path of a socket", dir)
	}
	for range 10 {
		if err := os.MkdirAll(base, 0o755); err != nil {
			return nil, err
		}
		// The system's machines can be looked up by those whom polkit lets do so.
		mode := fs.FileMode(0o700)
		if os.Geteuid() == 0 {
			mode = 0o711
		}
		if err := os.Mkdir(dir, mode); errors.Is(err, fs.ErrExist) {
			if err := ours(dir); err != nil {
				return nil, err
			}
		} else if err != nil {
			return nil, err
		}
		lock, err := tryLock(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue // somebody cleaned up meanwhile
		}
		if err != nil {
			return nil, err
		}
		if err := empty(dir); err != nil {
			lock.Close()
			return nil, err
		}
		return &Instance{dir, lock}, nil
	}
	return nil, fmt.Errorf("cannot make %s", dir)
}

// ours checks that a directory was made by Claim, or is empty: nothing else
// may be cleaned up.
func ours(dir string) error {
	if _, err := os.Lstat(filepath.Join(dir, lockFile)); err == nil {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err == nil && len(entries) > 0 {
		err = fmt.Errorf("%s exists and is not a machine's runtime directory", dir)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// tryLock takes the lock of a machine's directory. The lock only counts if the
// file is still there: its last owner may have removed it.
func tryLock(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockFile)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrRunning
		}
		return nil, err
	}
	now, err := os.Stat(path)
	if err == nil {
		var locked os.FileInfo
		if locked, err = f.Stat(); err == nil && !os.SameFile(now, locked) {
			err = fs.ErrNotExist
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// empty removes everything but the lock.
func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == lockFile {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// Path returns the path of a file in the directory.
func (i *Instance) Path(name string) string { return filepath.Join(i.Dir, name) }

// Publish writes the machine's state, so that List shows it.
func (i *Instance) Publish(s State) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	tmp := i.Path(stateFile + ".new")
	if err := os.WriteFile(tmp, append(b, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, i.Path(stateFile))
}

// Close removes the directory.
func (i *Instance) Close() error {
	err := os.RemoveAll(i.Dir)
	return errors.Join(err, i.lock.Close())
}

// maxState bounds the state file, in bytes.
const maxState = 64 << 10

// Open returns the state of a running machine and the path of its directory.
func Open(base, name string) (State, string, error) {
	if err := arg.MachineName(name); err != nil {
		return State{}, "", err
	}
	dir := filepath.Join(base, name)
	none := fmt.Errorf("no machine '%s' is running", name)
	if !locked(dir) {
		return State{}, "", none
	}
	fi, err := os.Stat(filepath.Join(dir, stateFile))
	if err != nil || fi.Size() > maxState {
		return State{}, "", none
	}
	b, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		return State{}, "", none
	}
	var s State
	if err := json.Unmarshal(b, &s); err != nil || s.Name != name {
		return State{}, "", fmt.Errorf("%s is damaged", filepath.Join(dir, stateFile))
	}
	return s, dir, nil
}

// locked reports whether the process of a machine lives.
func locked(dir string) bool {
	f, err := os.Open(filepath.Join(dir, lockFile))
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// List returns the running machines, by name, and removes what dead ones left.
func List(base string) ([]State, error) {
	entries, err := os.ReadDir(base)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var states []State
	for _, e := range entries {
		if !e.IsDir() || arg.MachineName(e.Name()) != nil {
			continue
		}
		if s, _, err := Open(base, e.Name()); err == nil {
			states = append(states, s)
		} else if _, serr := os.Stat(filepath.Join(base, e.Name(), lockFile)); serr == nil {
			if i, err := Claim(base, e.Name()); err == nil {
				i.Close() //nolint:errcheck // the next one tries again
			}
		}
	}
	sort.Slice(states, func(i, j int) bool { return states[i].Name < states[j].Name })
	return states, nil
}

// Wait returns when the process of the machine in dir has ended.
func Wait(ctx context.Context, dir string) error {
	f, err := os.Open(filepath.Join(dir, lockFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { // leaks until the process ends if ctx is done first: flock cannot be interrupted
		defer f.Close()
		ended <- unix.Flock(int(f.Fd()), unix.LOCK_SH)
	}()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
