package usernet

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	vnet "github.com/gvmspawn/gvmspawn/virtio/net"
	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

// inNamespace runs f in a network namespace of its own, in which unprivileged ICMP
// sockets are permitted and the addresses are its own.
func inNamespace(t *testing.T, f func(), addresses ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for a network namespace of its own")
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			commands := [][]string{{"link", "set", "lo", "up"}}
			for _, a := range addresses {
				commands = append(commands, append([]string{"addr", "add", "dev", "lo"}, strings.Fields(a)...))
			}
			for _, args := range commands {
				if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
					return errors.Join(err, errors.New(string(out)))
				}
			}
			// The file is the opener's namespace's.
			if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0); err != nil {
				return err
			}
			f()
			return nil
		}()
	}()
	if err := <-done; err != nil {
		t.Skipf("no network namespace here: %v", err)
	}
}

// echoFrame is the guest's echo request.
func echoFrame(dst netip.Addr, id, sequence uint16, data []byte) []byte {
	size := header.ICMPv4MinimumSize + len(data)
	frame := make([]byte, vnet.HeaderLen+header.EthernetMinimumSize+header.IPv6MinimumSize+size)
	if dst.Is4() {
		frame = frame[:len(frame)-header.IPv6MinimumSize+header.IPv4MinimumSize]
		icmp := header.ICMPv4(ipv4Frame(frame[vnet.HeaderLen:], gatewayMAC, Guest4, dst, header.ICMPv4ProtocolNumber, size))
		icmp.SetType(header.ICMPv4Echo)
		icmp.SetIdent(id)
		icmp.SetSequence(sequence)
		copy(icmp.Payload(), data)
		icmp.SetChecksum(^checksum.Checksum(icmp, 0))
		return frame
	}
	src := netip.MustParseAddr("fd67:766d::15")
	icmp := header.ICMPv6(ipv6Frame(frame[vnet.HeaderLen:], gatewayMAC, src, dst, header.ICMPv6ProtocolNumber, 64, size))
	icmp.SetType(header.ICMPv6EchoRequest)
	icmp.SetIdent(id)
	icmp.SetSequence(sequence)
	copy(icmp.Payload(), data)
	icmp.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: icmp, Src: address(src), Dst: address(dst)}))
	return frame
}

// Echo requests to the world go through unprivileged ICMP sockets; what answers them
// is there, and the guest's identifiers, of which two may be at work at once, come back.
func TestPing(t *testing.T) {
	world4, world6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	n, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	data := bytes.Repeat([]byte("ping "), 100)
	want := map[pingAnswer]bool{{world4, 7}: true, {world4, 60000}: true, {world6, 7}: true, {world6, 60000}: true}
	all := make(chan struct{})
	go func() {
		defer close(all)
		for got := (map[pingAnswer]bool{}); len(got) < len(want); {
			a, ok := receivePing(t, n, data)
			if !ok {
				t.Errorf("only the answers %v", got)
				return
			}
			if !want[a] {
				t.Errorf("answer %v", a)
			}
			got[a] = true
		}
	}()
	timeout := time.AfterFunc(20*time.Second, n.Interrupt)
	defer timeout.Stop()
	inNamespace(t, func() {
		// Again and again, as ping(8) does: an IPv6 address works a moment after it was
		// added. To 203.0.113.1 there is no route.
		for {
			for _, dst := range []netip.Addr{world4, world6, netip.MustParseAddr("203.0.113.1")} {
				for _, id := range []uint16{7, 60000} {
					frame := echoFrame(dst, id, id+1, data)
					if err := n.Transmit([]virtq.Buffer{{Bytes: frame}}, len(frame)); err != nil {
						t.Error(err)
					}
				}
			}
			select {
			case <-all:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	}, world4.String()+"/32", world6.String()+"/128 nodad")
}

// pingAnswer is an echo reply.
type pingAnswer struct {
	from netip.Addr
	id   uint16
}

// receivePing takes the next answer, checked, or false after an interrupt.
func receivePing(t *testing.T, n *Network, data []byte) (pingAnswer, bool) {
	b := make([]byte, vnet.MaxPacket)
	for {
		k, err := n.Receive([]virtq.Buffer{{Bytes: b}}, len(b))
		if err != nil {
			return pingAnswer{}, false
		}
		body := b[vnet.HeaderLen+header.EthernetMinimumSize : k]
		var a pingAnswer
		var sequence uint16
		var payload []byte
		switch header.Ethernet(b[vnet.HeaderLen:]).Type() {
		case header.IPv4ProtocolNumber:
			ip := header.IPv4(body)
			icmp := header.ICMPv4(ip.Payload())
			if icmp.Type() != header.ICMPv4EchoReply || checksum.Checksum(icmp, 0) != 0xffff || hostAddr(ip.DestinationAddress()) != Guest4 {
				t.Errorf("answer % x", body)
			}
			a, sequence, payload = pingAnswer{hostAddr(ip.SourceAddress()), icmp.Ident()}, icmp.Sequence(), icmp.Payload()
		case header.IPv6ProtocolNumber:
			ip := header.IPv6(body)
			icmp := header.ICMPv6(ip.Payload())
			if icmp.Type() != header.ICMPv6EchoReply {
				continue // who has that address
			}
			a, sequence, payload = pingAnswer{hostAddr(ip.SourceAddress()), icmp.Ident()}, icmp.Sequence(), icmp.Payload()
		default:
			continue
		}
		if sequence != a.id+1 || !bytes.Equal(payload, data) {
			t.Errorf("answer %v: sequence %d, %d bytes", a, sequence, len(payload))
		}
		return a, true
	}
}
