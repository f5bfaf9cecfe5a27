// Package arg parses the values of command line options: booleans, sizes,
// names, identifiers and the small languages of --bind=, --port= and others.
// The rules are those of systemd's option parsers, so that scripts written for
// systemd-vmspawn keep their meaning. Errors say what is wrong with the value;
// the caller adds the option's name.
package arg

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"math/big"
	"path/filepath"
	"strconv"
	"strings"
)

// Bool parses a systemd boolean: 1, yes, y, true, t, on and 0, no, n, false,
// f, off in any case.
func Bool(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "1", "yes", "y", "true", "t", "on":
		return true, nil
	case "0", "no", "n", "false", "f", "off":
		return false, nil
	}
	return false, errors.New("expected a boolean, yes or no")
}

// Tristate is a boolean that may be left for the program to decide.
type Tristate uint8

// Values of a Tristate.
const (
	Auto Tristate = iota
	No
	Yes
)

// ParseTristate parses a systemd boolean, or "auto" or "" for Auto.
func ParseTristate(s string) (Tristate, error) {
	if s == "" || strings.EqualFold(s, "auto") {
		return Auto, nil
	}
	b, err := Bool(s)
	switch {
	case err != nil:
		return Auto, errors.New("expected yes, no or auto")
	case b:
		return Yes, nil
	}
	return No, nil
}

// String returns "auto", "no" or "yes".
func (t Tristate) String() string { return [...]string{"auto", "no", "yes"}[t%3] }

// Size parses a number of bytes with an optional suffix B, K, M, G, T, P or E
// to the base 1024. A fraction is allowed ("1.5G") and truncated to bytes.
func Size(s string) (uint64, error) {
	const suffixes = "BKMGTPE"
	num, shift := strings.TrimSpace(s), uint(0)
	if n := len(num); n > 0 {
		if i := strings.IndexByte(suffixes, num[n-1]); i >= 0 {
			num, shift = strings.TrimSpace(num[:n-1]), uint(i)*10
		}
	}
	if num == "" || strings.Trim(num, "0123456789.") != "" || num[0] == '.' || num[len(num)-1] == '.' || len(num) > 40 {
		return 0, errors.New("expected a size such as 512M or 2G")
	}
	r, ok := new(big.Rat).SetString(num)
	if !ok {
		return 0, errors.New("expected a size such as 512M or 2G")
	}
	r.Mul(r, new(big.Rat).SetInt(new(big.Int).Lsh(big.NewInt(1), shift)))
	v := new(big.Int).Quo(r.Num(), r.Denom())
	if !v.IsUint64() {
		return 0, errors.New("the size is out of range")
	}
	return v.Uint64(), nil
}

// Path returns s as an absolute, cleaned path. The empty string stays empty:
// it resets an option.
func Path(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	if strings.IndexByte(s, 0) >= 0 {
		return "", errors.New("the path contains a NUL byte")
	}
	p, err := filepath.Abs(s)
	if err != nil {
		return "", fmt.Errorf("cannot make the path absolute: %w", err)
	}
	if len(p) >= 4096 {
		return "", errors.New("the path is longer than 4095 bytes")
	}
	return p, nil
}

// ExplicitPath parses a path that must be absolute or begin with "./", as
// where words such as "auto" are values too.
func ExplicitPath(s string) (string, error) {
	if !strings.HasPrefix(s, "/") && !strings.HasPrefix(s, "./") {
		return "", errors.New("absolute path or path starting with './' required")
	}
	return Path(s)
}

// CIDs that are not a guest's (virtio 1.2 §5.10.4, linux/vm_sockets.h).
const (
	cidFirstGuest = 3
	cidAny        = math.MaxUint32
)

// CID parses a guest's vsock context identifier, 3 to 4294967294. The empty
// string is 0: let the program choose.
func CID(s string) (uint32, error) {
	switch s {
	case "":
		return 0, nil
	case "hypervisor", "local", "host":
		return 0, errors.New("specified CID is not regular, refusing")
	}
	v, err := strconv.ParseUint(s, 0, 32)
	if err != nil {
		return 0, errors.New("expected a number from 3 to 4294967294")
	}
	if v < cidFirstGuest || v == cidAny {
		return 0, errors.New("specified CID is not regular, refusing")
	}
	return uint32(v), nil
}

// UUID is a 128-bit identifier in the order in which it is written.
type UUID [16]byte

// ParseUUID parses 32 hexadecimal digits, or the form with four dashes. The
// all-zero UUID is refused.
func ParseUUID(s string) (UUID, error) {
	var u UUID
	h := s
	if len(s) == 36 && s[8] == '-' && s[13] == '-' && s[18] == '-' && s[23] == '-' {
		h = s[:8] + s[9:13] + s[14:18] + s[19:23] + s[24:]
	}
	if len(h) != 32 {
		return u, errors.New("invalid UUID")
	}
	if _, err := hex.Decode(u[:], []byte(h)); err != nil {
		return u, errors.New("invalid UUID")
	}
	if u == (UUID{}) {
		return u, errors.New("machine UUID may not be all zeroes")
	}
	return u, nil
}

// String returns the form with dashes.
func (u UUID) String() string {
	h := hex.EncodeToString(u[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// UIDRange is a range of host user ids that the guest's ids from 0 on map to.
type UIDRange struct{ Shift, Count uint32 }

// uidInvalid is the user id (uid_t) -1.
const uidInvalid = math.MaxUint32

// ParseUIDRange parses UID_SHIFT[:UID_RANGE]; the range is 65536 by default.
func ParseUIDRange(s string) (UIDRange, error) {
	shift, count, found := strings.Cut(s, ":")
	r := UIDRange{Count: 65536}
	v, err := strconv.ParseUint(shift, 10, 32)
	if err != nil || v == uidInvalid {
		return r, fmt.Errorf("invalid UID shift %q", shift)
	}
	r.Shift = uint32(v)
	if found {
		if v, err = strconv.ParseUint(count, 10, 32); err != nil {
			return r, fmt.Errorf("invalid UID range %q", count)
		}
		r.Count = uint32(v)
	}
	if r.Count == 0 {
		return r, errors.New("the UID range is empty")
	}
	if uint64(r.Shift)+uint64(r.Count) > uidInvalid {
		return r, errors.New("the UID range ends beyond the last valid UID")
	}
	return r, nil
}

// Memory is the argument of --ram=: sizes in bytes.
type Memory struct {
	Size, Max uint64 // Max 0: no hotplug
	Slots     uint32
}

// ParseMemory parses BYTES[:MAXBYTES[:SLOTS]] and rounds sizes up to MiB.
func ParseMemory(s string) (Memory, error) {
	var m Memory
	parts := strings.Split(s, ":")
	if len(parts) > 3 {
		return m, errors.New("expected BYTES[:MAXBYTES[:SLOTS]]")
	}
	var err error
	if m.Size, err = wholeMiB(parts[0]); err != nil {
		return m, err
	}
	if m.Size == 0 {
		return m, errors.New("a machine needs more memory than none")
	}
	if len(parts) == 1 {
		return m, nil
	}
	if m.Max, err = wholeMiB(parts[1]); err != nil {
		return m, err
	}
	if m.Max < m.Size {
		return m, errors.New("the maximum is smaller than the memory itself")
	}
	m.Slots = 1
	if len(parts) == 3 {
		v, err := strconv.ParseUint(parts[2], 10, 32)
		if err != nil || v == 0 {
			return m, errors.New("the number of slots is not a positive number")
		}
		m.Slots = uint32(v)
	}
	return m, nil
}

// wholeMiB parses a size and rounds it up to a multiple of 1 MiB.
func wholeMiB(s string) (uint64, error) {
	const mib = 1 << 20
	v, err := Size(s)
	if err != nil {
		return 0, err
	}
	if v > math.MaxUint64-(mib-1) {
		return 0, errors.New("the size is out of range")
	}
	return (v + mib - 1) &^ (mib - 1), nil
}

// MaxCPUs is how many CPUs a machine can have.
const MaxCPUs = 64

// Topology is the argument of --cpus=.
type Topology struct {
	CPUs                    int
	Sockets, Cores, Threads int // 0: not given
}

// ParseCPUs parses a number of CPUs, or QEMU's -smp form
// [cpus=]N[,sockets=S][,dies=1][,cores=C][,threads=T][,maxcpus=N].
func ParseCPUs(s string) (Topology, error) {
	var t Topology
	for i, f := range strings.Split(s, ",") {
		k, v, found := strings.Cut(f, "=")
		if !found {
			if i > 0 {
				return t, fmt.Errorf("expected NAME=NUMBER instead of %q", f)
			}
			k, v = "cpus", f
		}
		n, err := strconv.ParseUint(v, 10, 32)
		if err != nil || n == 0 || n > MaxCPUs {
			return t, fmt.Errorf("expected a number from 1 to %d instead of %q", MaxCPUs, v)
		}
		if !t.set(k, int(n)) {
			return t, fmt.Errorf("unknown or unsupported setting %q", k)
		}
	}
	return t, t.complete()
}

func (t *Topology) set(key string, n int) bool {
	switch key {
	case "cpus":
		t.CPUs = n
	case "sockets":
		t.Sockets = n
	case "cores":
		t.Cores = n
	case "threads":
		t.Threads = n
	case "maxcpus":
		return t.CPUs == 0 || t.CPUs == n
	case "dies", "clusters", "modules":
		return n == 1
	default:
		return false
	}
	return true
}

// complete fills in what was not given as QEMU does from version 6.2 on: cores
// take what sockets and threads leave, then sockets, then threads.
func (t *Topology) complete() error {
	given := t.Sockets != 0 || t.Cores != 0 || t.Threads != 0
	or1 := func(n int) int { return max(n, 1) }
	if t.CPUs == 0 {
		t.CPUs = or1(t.Sockets) * or1(t.Cores) * or1(t.Threads)
	}
	if t.CPUs > MaxCPUs {
		return fmt.Errorf("at most %d CPUs are possible", MaxCPUs)
	}
	if !given {
		return nil
	}
	switch {
	case t.Cores == 0:
		t.Sockets, t.Threads = or1(t.Sockets), or1(t.Threads)
		t.Cores = t.CPUs / (t.Sockets * t.Threads)
	case t.Sockets == 0:
		t.Threads = or1(t.Threads)
		t.Sockets = t.CPUs / (t.Cores * t.Threads)
	case t.Threads == 0:
		t.Threads = t.CPUs / (t.Sockets * t.Cores)
	}
	if t.Sockets*t.Cores*t.Threads != t.CPUs {
		return fmt.Errorf("%d CPUs cannot be divided into that topology", t.CPUs)
	}
	return nil
}
