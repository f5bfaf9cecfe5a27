package arg

import (
	"errors"
	"fmt"
	"net/netip"
	"path"
	"strconv"
	"strings"
)

// Bind is the argument of --bind=: a file or directory of the host and where
// the guest sees it.
type Bind struct {
	Source   string // absolute
	Target   string // absolute, in the guest
	ReadOnly bool
}

// ParseBind parses SOURCE[:TARGET]. In both a backslash makes the next
// character literal. Without a target the source is the target too and must
// be absolute then.
func ParseBind(s string, readOnly bool) (Bind, error) {
	source, rest, found := cutEscaped(s)
	target := source
	if found {
		var more bool
		if target, _, more = cutEscaped(rest); more {
			return Bind{}, errors.New("expected SOURCE[:TARGET]; write \\: for a colon in a path")
		}
	}
	if source == "" {
		return Bind{}, errors.New("the source path is empty")
	}
	if !path.IsAbs(target) {
		return Bind{}, fmt.Errorf("the path in the guest must be absolute: %s", Printable(target))
	}
	if err := UTF8(target); err != nil {
		return Bind{}, err
	}
	source, err := Path(source)
	return Bind{Source: source, Target: path.Clean(target), ReadOnly: readOnly}, err
}

// cutEscaped splits s at the first colon that no backslash precedes, and
// removes the backslashes from what is before it.
func cutEscaped(s string) (before, after string, found bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case c == ':':
			return b.String(), s[i+1:], true
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), "", false
}

// DiskFormats and DiskTypes are the words of --extra-drive= and of
// --image-format= and --image-disk-type=.
var (
	DiskFormats  = []string{"raw", "qcow2"}
	DiskCaches   = []string{"writeback", "none", "unsafe"}
	DiskBackings = []string{"beside", "anywhere"}
	DiskTypes    = []string{"virtio-blk", "virtio-scsi", "nvme", "scsi-cd", "pmem"}
)

// OneOf checks that s is one of the words.
func OneOf(s string, words []string) error {
	for _, w := range words {
		if s == w {
			return nil
		}
	}
	return fmt.Errorf("expected one of %s", strings.Join(words, ", "))
}

// Drive is the argument of --extra-drive=. Empty strings: not given.
type Drive struct{ Format, Type, Path string }

// ParseDrive parses [FORMAT:][DISKTYPE:]PATH, the prefixes in any order.
func ParseDrive(s string) (Drive, error) {
	var d Drive
	for {
		word, rest, found := strings.Cut(s, ":")
		switch {
		case found && d.Format == "" && OneOf(word, DiskFormats) == nil:
			d.Format = word
		case found && d.Type == "" && OneOf(word, DiskTypes) == nil:
			d.Type = word
		case s == "":
			return d, errors.New("the path is empty")
		default:
			var err error
			d.Path, err = Path(s)
			return d, err
		}
		s = rest
	}
}

// Forward is the argument of --port=: connections to a host port go to a port
// of the guest.
type Forward struct {
	UDP  bool
	Host netip.AddrPort // the address is invalid if not given
	Port uint16         // of the guest
}

// ParseForward parses [tcp:|udp:][ADDRESS:]HOSTPORT[:GUESTPORT], with an IPv6
// address in brackets.
func ParseForward(s string) (Forward, error) {
	var f Forward
	rest := s
	if after, ok := strings.CutPrefix(rest, "udp:"); ok {
		f.UDP, rest = true, after
	} else {
		rest = strings.TrimPrefix(rest, "tcp:")
	}
	var addr netip.Addr
	var err error
	if strings.HasPrefix(rest, "[") {
		a, after, ok := strings.Cut(rest[1:], "]:")
		if !ok {
			return f, errors.New("expected ]: after the IPv6 address")
		}
		if addr, err = netip.ParseAddr(a); err != nil {
			return f, fmt.Errorf("invalid address %q", a)
		}
		rest = after
	} else if a, after, ok := strings.Cut(rest, ":"); ok && strings.Contains(a, ".") {
		if addr, err = netip.ParseAddr(a); err != nil {
			return f, fmt.Errorf("invalid address %q", a)
		}
		rest = after
	}
	hostPort, guestPort, found := strings.Cut(rest, ":")
	if !found {
		guestPort = hostPort
	}
	h, err := port(hostPort)
	if err != nil {
		return f, err
	}
	f.Host = netip.AddrPortFrom(addr, h)
	f.Port, err = port(guestPort)
	return f, err
}

func port(s string) (uint16, error) {
	v, err := strconv.ParseUint(s, 10, 16)
	if err != nil || v == 0 {
		return 0, fmt.Errorf("expected a port from 1 to 65535 instead of %q", s)
	}
	return uint16(v), nil
}
