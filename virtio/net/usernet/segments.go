package usernet

import (
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// maxSegments bounds the datagrams behind one header; Linux makes 128 at most.
const maxSegments = 512

// udpHead describes the headers before the datagrams of UDP segmentation offload.
type udpHead struct {
	v6   bool
	size int // of Ethernet, IP and UDP headers
}

// parseUDPHead finds the headers of a frame; false means that this is no UDP.
func parseUDPHead(p []byte) (udpHead, bool) {
	const ethernet = header.EthernetMinimumSize
	if len(p) < ethernet+header.IPv4MinimumSize {
		return udpHead{}, false
	}
	switch header.Ethernet(p).Type() {
	case header.IPv4ProtocolNumber:
		ip := header.IPv4(p[ethernet:])
		size := int(ip.HeaderLength())
		ok := p[ethernet]>>4 == 4 && size >= header.IPv4MinimumSize && ip.Protocol() == uint8(header.UDPProtocolNumber)
		return udpHead{false, ethernet + size + header.UDPMinimumSize}, ok
	case header.IPv6ProtocolNumber:
		if len(p) < ethernet+header.IPv6MinimumSize {
			return udpHead{}, false
		}
		ok := header.IPv6(p[ethernet:]).NextHeader() == uint8(header.UDPProtocolNumber)
		return udpHead{true, ethernet + header.IPv6MinimumSize + header.UDPMinimumSize}, ok
	}
	return udpHead{}, false
}

// transmitSegments cuts a packet of UDP segmentation offload (virtio 1.2 §5.1.6.2,
// VIRTIO_NET_HDR_GSO_UDP_L4) into its datagrams of n bytes. g is behind the virtio
// header, before a frame of size bytes.
func (e *Endpoint) transmitSegments(g *gather, size, n int) error {
	var head [headMax]byte
	have := head[:min(size, len(head))]
	if !g.read(have) {
		return errFrame
	}
	h, ok := parseUDPHead(have)
	left := size - h.size
	if !ok || left <= 0 || n == 0 || left > n*maxSegments || h.size+min(left, n) > buffer.MaxChunkSize {
		return errFrame
	}
	have = have[min(h.size, len(have)):]
	for left > 0 {
		part := min(left, n)
		view := buffer.NewViewSize(h.size + part)
		frame := view.AsSlice()
		copy(frame, head[:h.size])
		k := copy(frame[h.size:], have)
		have = have[k:]
		if !g.read(frame[h.size+k:]) {
			view.Release()
			return errFrame
		}
		h.finish(frame)
		left -= part
		if e.intercept(frame) {
			view.Release()
			continue
		}
		e.deliver(buffer.MakeWithView(view))
	}
	return nil
}

// finish makes the lengths in a copy of the headers those of one datagram.
func (h udpHead) finish(frame []byte) {
	udp := header.UDP(frame[h.size-header.UDPMinimumSize:])
	udp.SetLength(uint16(len(udp)))
	if h.v6 {
		header.IPv6(frame[header.EthernetMinimumSize:]).SetPayloadLength(uint16(len(udp)))
		return
	}
	ip := header.IPv4(frame[header.EthernetMinimumSize : h.size-header.UDPMinimumSize])
	ip.SetTotalLength(uint16(len(frame) - header.EthernetMinimumSize))
	ip.SetChecksum(0)
	ip.SetChecksum(^ip.CalculateChecksum())
}
