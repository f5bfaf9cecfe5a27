package vmm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// Addresses of the boot server and of its only client.
const (
	bootServer = "10.77.0.1"
	bootClient = "10.77.0.2"
)

// bootNetwork is a network of its own with a host that answers DHCP, and serves one
// file by TFTP and HTTP.
type bootNetwork struct {
	tap   *os.File
	file  []byte
	stop  func()
	asked chan string // protocols by which the file was fetched
}

// newBootNetwork makes it in a network namespace, for which it needs root.
func newBootNetwork(t *testing.T, file []byte) *bootNetwork {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("makes a network namespace, as root")
	}
	guesttest.Tool(t, "ip")
	n := &bootNetwork{file: file, asked: make(chan string, 64)}
	ready := make(chan error)
	go n.serve(ready)
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.stop)
	return n
}

// serve stays on its thread, which is in the namespace, and so are the sockets
// that it makes; the thread ends with it.
func (n *bootNetwork) serve(ready chan<- error) {
	runtime.LockOSThread()
	tftp, err := n.listen()
	ready <- err
	for err == nil {
		b := make([]byte, 1500)
		var client net.Addr
		var size int
		if size, client, err = tftp.ReadFrom(b); err == nil {
			n.transfer(client, b[:size])
		}
	}
}

// listen makes the namespace and its servers, and returns the socket of TFTP, which
// is served by the caller.
func (n *bootNetwork) listen() (net.PacketConn, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	tap, err := openTAP("boot")
	if err != nil {
		return nil, err
	}
	n.tap = tap
	for _, args := range []string{"link set lo up", "addr add " + bootServer + "/24 dev boot", "link set boot up"} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("ip %s: %w: %s", args, err, out)
		}
	}
	server, err := server4.NewServer("boot", &net.UDPAddr{IP: net.IPv4zero, Port: dhcpv4.ServerPort}, n.answer)
	if err != nil {
		return nil, err
	}
	web, err := net.Listen("tcp", bootServer+":80")
	if err != nil {
		return nil, err
	}
	tftp, err := net.ListenPacket("udp4", bootServer+":69")
	if err != nil {
		return nil, err
	}
	n.stop = func() { server.Close(); web.Close(); tftp.Close() } //nolint:errcheck // the end of the test
	go server.Serve()                                             //nolint:errcheck // likewise
	go http.Serve(web, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/boot.efi" {
			http.NotFound(w, r)
			return
		}
		if r.Method == http.MethodGet {
			n.asked <- "HTTP"
		}
		w.Header().Set("Content-Type", "application/efi")
		w.Header().Set("Content-Length", strconv.Itoa(len(n.file)))
		if r.Method == http.MethodGet {
			w.Write(n.file) //nolint:errcheck // the client may go
		}
	}))
	return tftp, nil
}

// openTAP makes a TAP device as NIC.TAP wants it.
func openTAP(name string) (*os.File, error) {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return nil, err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	return f, unix.IoctlIfreq(int(f.Fd()), unix.TUNSETIFF, ifr)
}

// answer is DHCP: to who wants to boot by HTTP, an address of the file (UEFI 2.10
// §24.7.2), to others server and name of it (RFC 2131).
func (n *bootNetwork) answer(conn net.PacketConn, peer net.Addr, m *dhcpv4.DHCPv4) {
	kind := dhcpv4.MessageTypeOffer
	switch m.MessageType() {
	case dhcpv4.MessageTypeRequest:
		kind = dhcpv4.MessageTypeAck
	case dhcpv4.MessageTypeDiscover:
	default:
		return
	}
	options := []dhcpv4.Modifier{
		dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(net.ParseIP(bootClient)), dhcpv4.WithNetmask(net.CIDRMask(24, 32)),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.ParseIP(bootServer))), dhcpv4.WithLeaseTime(3600), dhcpv4.WithBroadcast(true),
	}
	if strings.HasPrefix(m.ClassIdentifier(), "HTTPClient") {
		options = append(options, dhcpv4.WithOption(dhcpv4.OptClassIdentifier("HTTPClient")),
			dhcpv4.WithOption(dhcpv4.OptBootFileName("http://"+bootServer+"/boot.efi")))
	} else {
		options = append(options, dhcpv4.WithServerIP(net.ParseIP(bootServer)), func(d *dhcpv4.DHCPv4) { d.BootFileName = "boot.efi" })
	}
	if reply, err := dhcpv4.NewReplyFromRequest(m, options...); err == nil {
		conn.WriteTo(reply.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpv4.ClientPort}) //nolint:errcheck // it asks again
	}
}

// Operations of TFTP (RFC 1350 §5, RFC 2347).
const (
	tftpRead = 1
	tftpData = 3
	tftpAck  = 4
	tftpErr  = 5
	tftpOAck = 6
)

// transfer sends the file to a client that asked for it, with the options blksize
// and tsize (RFC 2348, RFC 2349).
func (n *bootNetwork) transfer(client net.Addr, request []byte) {
	c, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.ParseIP(bootServer)}, client.(*net.UDPAddr))
	if err != nil {
		return
	}
	defer c.Close()
	words := strings.Split(string(request[2:]), "\x00")
	if binary.BigEndian.Uint16(request) != tftpRead || len(words) < 2 || words[0] != "boot.efi" {
		c.Write([]byte{0, tftpErr, 0, 1, 'n', 'o', 0}) //nolint:errcheck // it asks again
		return
	}
	size, accepted := 512, []byte{0, tftpOAck}
	for i := 2; i+1 < len(words); i += 2 {
		switch strings.ToLower(words[i]) {
		case "blksize":
			size, err = strconv.Atoi(words[i+1])
			if err != nil || size < 8 {
				return
			}
			accepted = fmt.Appendf(accepted, "blksize\x00%d\x00", size)
		case "tsize":
			accepted = fmt.Appendf(accepted, "tsize\x00%d\x00", len(n.file))
		}
	}
	if len(accepted) > 2 && sendBlock(c, accepted, 0) != nil {
		return
	}
	n.asked <- "TFTP"
	for block, rest := 1, bytes.NewReader(n.file); ; block++ {
		data := make([]byte, 4+size)
		got, _ := rest.Read(data[4:]) // 0 at the end
		data[1], data[2], data[3] = tftpData, byte(block>>8), byte(block)
		if sendBlock(c, data[:4+got], uint16(block)) != nil || got < size {
			return
		}
	}
}

// sendBlock sends a packet until it is acknowledged.
func sendBlock(c *net.UDPConn, packet []byte, block uint16) error {
	for range 10 {
		if _, err := c.Write(packet); err != nil {
			return err
		}
		for b := make([]byte, 1500); ; {
			c.SetReadDeadline(time.Now().Add(2 * time.Second)) //nolint:errcheck // then Read fails at once
			got, err := c.Read(b)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil || got < 4 || b[1] == tftpErr {
				return fmt.Errorf("the client ends the transfer: %v", err)
			}
			if b[1] == tftpAck && binary.BigEndian.Uint16(b[2:]) == block {
				return nil
			}
		}
	}
	return errors.New("no acknowledgement")
}

// TestLongFirmwareNetwork: OVMF boots a unified kernel image from a server of its
// network over virtio-net, by PXE and by HTTP.
func TestLongFirmwareNetwork(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("set GVMSPAWN_LONG=1")
	}
	file, err := os.ReadFile(smallUKI(t))
	if err != nil {
		t.Fatal(err)
	}
	no := func(names ...string) (items []FirmwareItem) {
		for _, n := range names {
			items = append(items, FirmwareItem{Name: "opt/org.tianocore/" + n, Content: []byte("n")})
		}
		return items
	}
	for protocol, items := range map[string][]FirmwareItem{
		"TFTP": no("IPv6PXESupport"), "HTTP": no("IPv4PXESupport", "IPv6PXESupport"),
	} {
		t.Run(protocol, func(t *testing.T) {
			n := newBootNetwork(t, file)
			bootsBy(t, Config{NICs: []NIC{{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 7}, TAP: n.tap}}, Firmware: &Firmware{Items: items}})
			if got := <-n.asked; got != protocol {
				t.Errorf("the file was fetched by %s", got)
			}
		})
	}
}
