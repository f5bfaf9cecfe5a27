package usernet

import (
	"bytes"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	vnet "github.com/gvmspawn/gvmspawn/virtio/net"
	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

// sink is a netstack that keeps the last packet.
type sink struct{ got []byte }

func (s *sink) DeliverNetworkPacket(_ tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	s.got = s.got[:0]
	for _, b := range pkt.AsSlices() {
		s.got = append(s.got, b...)
	}
}

func (s *sink) DeliverLinkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) {}

// TestTransmitAnySize: frames up to the largest of segmentation offload arrive
// whole, however the driver cut them up (virtio 1.2 §2.7.4, §5.1.6.2).
func TestTransmitAnySize(t *testing.T) {
	var s sink
	e := newEndpoint(func([]byte) bool { return false })
	e.Attach(&s)
	for _, size := range []int{header.EthernetMinimumSize, 60, 1514, buffer.MaxChunkSize - 1, buffer.MaxChunkSize,
		buffer.MaxChunkSize + 1, vnet.MaxPacket - vnet.HeaderLen} {
		packet := make([]byte, vnet.HeaderLen+size)
		for i := range packet {
			packet[i] = byte(i * 7)
		}
		for _, cut := range []int{1, vnet.HeaderLen, vnet.HeaderLen + 5, len(packet) - 1} {
			pieces := []virtq.Buffer{{Bytes: packet[:cut]}, {}, {Bytes: packet[cut:]}}
			if err := e.Transmit(pieces, len(packet)); err != nil {
				t.Fatalf("%d bytes: %v", size, err)
			}
			if !bytes.Equal(s.got, packet[vnet.HeaderLen:]) {
				t.Errorf("%d bytes, cut at %d: %d bytes arrived, or other ones", size, cut, len(s.got))
			}
		}
		if err := e.Transmit([]virtq.Buffer{{Bytes: packet[:len(packet)-1]}}, len(packet)); err == nil {
			t.Errorf("%d bytes: a packet shorter than it says was taken", size)
		}
	}
}
