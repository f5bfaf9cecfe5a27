// Package identity derives what others know a machine by from its name: the
// names of its network interfaces and its MAC address. The derivations are
// systemd-vmspawn's, so that a machine keeps its identity.
package identity

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
)

// Keys of the hashes in systemd-vmspawn.
var (
	tapKey = [16]byte{0xe1, 0x90, 0xa4, 0x04, 0xa8, 0xef, 0x4b, 0x51, 0x8c, 0xcc, 0xc3, 0x3a, 0x9f, 0x11, 0xfc, 0xa2}
	macKey = [16]byte{0x01, 0xd0, 0xc6, 0x4c, 0x2b, 0xdf, 0x24, 0xfb, 0xc0, 0xf8, 0xb2, 0x09, 0x7d, 0x59, 0xb2, 0x93}
)

// maxIfName is the longest interface name, IFNAMSIZ without its NUL.
const maxIfName = 15

// TapName returns the name of a machine's TAP interface: vt-NAME, or its
// first 11 characters and a hash if that is too long.
func TapName(machine string) string {
	const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	name := "vt-" + machine
	if len(name) <= maxIfName {
		return name
	}
	h := siphash24(tapKey, []byte(name))
	b := []byte(name[:maxIfName-4])
	for shift := 18; shift >= 0; shift -= 6 {
		b = append(b, digits[h>>shift&63])
	}
	return string(b)
}

// MAC returns the address of a machine's network card: unicast and locally
// administered, the same on each start on the same host.
func MAC(hostID [16]byte, machine string) net.HardwareAddr {
	h := siphash24(macKey, append(hostID[:], machine...))
	b := binary.LittleEndian.AppendUint64(nil, h)[:6]
	b[0] = b[0]&^1 | 2
	return b
}

// HostID reads the host's machine-id (machine-id(5)) from path, by default
// /etc/machine-id.
func HostID(path string) (id [16]byte, err error) {
	if path == "" {
		path = "/etc/machine-id"
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return id, fmt.Errorf("cannot read the host's machine ID: %w", err)
	}
	s := strings.TrimSpace(string(b))
	if len(s) != 32 {
		return id, fmt.Errorf("%s does not hold a machine ID", path)
	}
	if _, err = hex.Decode(id[:], []byte(s)); err != nil || id == [16]byte{} {
		return id, fmt.Errorf("%s does not hold a machine ID", path)
	}
	return id, nil
}

// ParseMAC parses a unicast Ethernet address, as of SYSTEMD_VMSPAWN_NETWORK_MAC.
func ParseMAC(s string) (net.HardwareAddr, error) {
	a, err := net.ParseMAC(s)
	if err != nil || len(a) != 6 {
		return nil, errors.New("expected an Ethernet address such as 52:54:00:12:34:56")
	}
	if a[0]&1 != 0 {
		return nil, errors.New("the address is a multicast address")
	}
	return a, nil
}

// cidKey is the key of systemd-vmspawn's hash for context IDs.
var cidKey = [16]byte{0x03, 0xad, 0xf0, 0xa4, 0x59, 0x2c, 0x77, 0x11, 0xda, 0x39, 0x0c, 0xba, 0xf5, 0x4c, 0x80, 0x52}

// CID returns the i-th vsock context ID to try for a machine, 3 to 4294967293.
func CID(machine string, i uint32) uint32 {
	h := siphash24(cidKey, binary.LittleEndian.AppendUint32([]byte(machine), i))
	return uint32(3 + h%4294967291)
}
