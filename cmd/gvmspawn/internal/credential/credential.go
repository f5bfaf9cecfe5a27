// Package credential collects the credentials that a machine is given
// (systemd.exec(5), "Credentials").
package credential

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/arg"
)

// Limits of systemd's PID 1 in the guest (CREDENTIAL_SIZE_MAX and
// CREDENTIALS_TOTAL_SIZE_MAX of src/basic/creds-util.h), in bytes.
const (
	MaxSize  = 1 << 20
	MaxTotal = 1 << 20
)

// readTimeout is how long a credential's socket may take to deliver.
const readTimeout = 30 * time.Second

// Credential is a named piece of data for the guest.
type Credential struct {
	ID   string
	Data []byte
}

// Set is credentials in the order in which they were added, each name once.
// The zero value is empty.
type Set struct {
	list  []Credential
	total int
}

// List returns the credentials; the caller does not change it.
func (s *Set) List() []Credential { return s.list }

// Has reports whether there is a credential of that name.
func (s *Set) Has(id string) bool { return s.find(id) >= 0 }

func (s *Set) find(id string) int {
	for i := range s.list {
		if s.list[i].ID == id {
			return i
		}
	}
	return -1
}

// Add adds a credential. A name that is invalid or taken, and more data than
// the guest would accept, are errors.
func (s *Set) Add(id string, data []byte) error {
	if err := arg.CredentialName(id); err != nil {
		return err
	}
	if s.Has(id) {
		return fmt.Errorf("duplicate credential '%s'", id)
	}
	if len(data) > MaxSize {
		return fmt.Errorf("credential '%s' is larger than 1 MiB", id)
	}
	if s.total+len(data) > MaxTotal {
		return fmt.Errorf("with credential '%s' all credentials together are larger than 1 MiB, which no guest accepts", id)
	}
	s.total += len(data)
	s.list = append(s.list, Credential{id, data})
	return nil
}

// AddDefault adds a credential of ours unless the user gave one of that name.
func (s *Set) AddDefault(id string, data []byte) error {
	if s.Has(id) {
		return nil
	}
	return s.Add(id, data)
}

// Append adds data to the end of a credential, which need not exist yet.
func (s *Set) Append(id string, data []byte) error {
	i := s.find(id)
	if i < 0 {
		return s.Add(id, data)
	}
	old := s.list[i].Data
	joined := append(append([]byte(nil), old...), data...)
	if len(old) > 0 && old[len(old)-1] != '\n' {
		joined = append(append(append([]byte(nil), old...), '\n'), data...)
	}
	if s.total+len(joined)-len(old) > MaxTotal {
		return fmt.Errorf("credential '%s' makes all credentials together larger than 1 MiB", id)
	}
	s.total += len(joined) - len(old)
	s.list[i].Data = joined
	return nil
}

// SetArgument adds the argument of --set-credential=, ID:VALUE, with C escapes
// in the value.
func (s *Set) SetArgument(v string) error {
	id, value, found := strings.Cut(v, ":")
	if !found {
		return errors.New("expected ID:VALUE")
	}
	if err := arg.CredentialName(id); err != nil {
		return err
	}
	data, err := arg.Unescape(value)
	if err != nil {
		return fmt.Errorf("the value of credential '%s' has an %w", id, err)
	}
	return s.Add(id, data)
}

// LoadArgument adds the argument of --load-credential=, ID:PATH. An absolute
// path is a file or an AF_UNIX stream socket to read from; anything else is
// the name of a credential that this process was given itself, in dir (by
// default $CREDENTIALS_DIRECTORY).
func (s *Set) LoadArgument(v, dir string) error {
	id, path, found := strings.Cut(v, ":")
	if !found {
		return errors.New("expected ID:PATH")
	}
	if err := arg.CredentialName(id); err != nil {
		return err
	}
	if s.Has(id) {
		return fmt.Errorf("duplicate credential '%s'", id)
	}
	if !filepath.IsAbs(path) {
		if err := arg.CredentialName(path); err != nil {
			return fmt.Errorf("%s is neither an absolute path nor the name of a credential", arg.Printable(path))
		}
		if dir == "" {
			dir = os.Getenv("CREDENTIALS_DIRECTORY")
		}
		if dir == "" {
			return fmt.Errorf("credential '%s' is to be taken over, but $CREDENTIALS_DIRECTORY is not set", path)
		}
		path = filepath.Join(dir, path)
	}
	data, err := read(path)
	if err != nil {
		return fmt.Errorf("failed to read credential '%s': %w", id, err)
	}
	return s.Add(id, data)
}

// read returns what the file or socket at path holds, at most a byte more
// than MaxSize. It never waits for the writer of a FIFO.
func read(path string) ([]byte, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if fi.Mode()&os.ModeSocket != 0 {
		return readSocket(path)
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is neither a regular file nor a socket", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, MaxSize+1))
}

func readSocket(path string) ([]byte, error) {
	deadline := time.Now().Add(readTimeout)
	c, err := (&net.Dialer{Deadline: deadline}).Dial("unix", path)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.SetDeadline(deadline); err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(c, MaxSize+1))
}
