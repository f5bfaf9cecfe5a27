package usernet

import (
	"encoding/binary"
	"errors"
	"sync"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/gvmspawn/gvmspawn/virtio"
	vnet "github.com/gvmspawn/gvmspawn/virtio/net"
	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

// Bounds of what waits for the guest to take it.
const (
	maxQueuedPackets = 4096
	maxQueuedBytes   = 16 << 20
)

// gsoMax is the largest packet that netstack leaves to segmentation offload.
const gsoMax = 65000

var errFrame = errors.New("malformed frame")

// Endpoint joins the virtio network device, as its Link, with netstack, as its
// link endpoint.
type Endpoint struct {
	intercept func(frame []byte) bool

	mu         sync.Mutex // guards all below; cond is signalled when the queue grows or on an interrupt
	cond       *sync.Cond
	dispatcher stack.NetworkDispatcher
	mac        tcpip.LinkAddress
	features   virtio.Features
	queue      []outgoing
	head       int // queue[head:] waits
	queued     int // bytes in it
	interrupt  bool
	onClose    func()
}

// outgoing is one packet to the guest: a packet of netstack, or a raw frame.
type outgoing struct {
	pkt   *stack.PacketBuffer
	frame []byte
}

func newEndpoint(intercept func([]byte) bool) *Endpoint {
	e := &Endpoint{intercept: intercept, mac: gatewayMAC}
	e.cond = sync.NewCond(&e.mu)
	return e
}

// Features are all checksum and TCP segmentation offloads: a packet is only
// ever cut into segments if it leaves the host. The guest's UDP may come as one
// datagram to be cut into fragments (UFO), which it is not, or as many behind one
// header (USO). To the guest there are neither: a datagram fits the MTU as it is, and
// netstack, like the sockets behind it, has one at a time.
func (e *Endpoint) Features() virtio.Features {
	return virtio.Bits(vnet.FCsum, vnet.FGuestCsum, vnet.FHostTSO4, vnet.FHostTSO6, vnet.FGuestTSO4, vnet.FGuestTSO6,
		vnet.FHostUFO, vnet.FHostUSO)
}

// SetFeatures remembers what the guest can take, and drops what waits for an
// earlier driver.
func (e *Endpoint) SetFeatures(f virtio.Features) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.features = f
	e.interrupt = false
	for e.head < len(e.queue) {
		e.pop().release()
	}
	return nil
}

// headMax holds all headers of a frame, and then some.
const headMax = 512

// Transmit takes a packet of the guest into netstack.
func (e *Endpoint) Transmit(pieces []virtq.Buffer, size int) error {
	if size < vnet.HeaderLen+header.EthernetMinimumSize {
		return errFrame
	}
	g := gather{pieces: pieces}
	var hdr [vnet.HeaderLen]byte
	if !g.read(hdr[:]) {
		return errFrame
	}
	if hdr[vnet.HdrGSOType] == vnet.GSOUDPL4 {
		return e.transmitSegments(&g, size-vnet.HeaderLen, int(binary.LittleEndian.Uint16(hdr[vnet.HdrGSOSize:])))
	}
	// netstack recycles memory up to MaxChunkSize only, and the largest frames
	// of segmentation offload are a few bytes longer.
	frame := size - vnet.HeaderLen
	head, rest := frame, 0
	if frame > buffer.MaxChunkSize {
		head = max(headMax, frame-buffer.MaxChunkSize)
		rest = frame - head
	}
	view := buffer.NewViewSize(head)
	if !g.read(view.AsSlice()) {
		view.Release()
		return errFrame
	}
	if rest == 0 && e.intercept(view.AsSlice()) {
		view.Release()
		return nil
	}
	data := buffer.MakeWithView(view)
	if rest > 0 {
		tail := buffer.NewViewSize(rest)
		if !g.read(tail.AsSlice()) {
			tail.Release()
			data.Release()
			return errFrame
		}
		_ = data.Append(tail) // there is no error for a view of our own
	}
	e.deliver(data)
	return nil
}

// gather reads from a list of buffers.
type gather struct {
	pieces []virtq.Buffer
	at     int // bytes read of pieces[0]
}

// read fills p, and reports whether there was enough.
func (g *gather) read(p []byte) bool {
	for len(p) > 0 {
		if len(g.pieces) == 0 {
			return false
		}
		n := copy(p, g.pieces[0].Bytes[g.at:])
		p = p[n:]
		if g.at += n; g.at == len(g.pieces[0].Bytes) {
			g.pieces, g.at = g.pieces[1:], 0
		}
	}
	return true
}

// deliver hands a frame to netstack. Its checksums need no check: it never
// left this machine's memory, and with offload they are not there yet.
func (e *Endpoint) deliver(data buffer.Buffer) {
	e.mu.Lock()
	d := e.dispatcher
	e.mu.Unlock()
	if d == nil {
		data.Release()
		return
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: data})
	defer pkt.DecRef()
	pkt.RXChecksumValidated = true
	hdr, ok := pkt.LinkHeader().Consume(header.EthernetMinimumSize)
	if !ok {
		return
	}
	eth := header.Ethernet(hdr)
	pkt.NetworkProtocolNumber = eth.Type()
	pkt.PktType = tcpip.PacketHost
	if dst := eth.DestinationAddress(); dst == header.EthernetBroadcastAddress {
		pkt.PktType = tcpip.PacketBroadcast
	} else if header.IsMulticastEthernetAddress(dst) {
		pkt.PktType = tcpip.PacketMulticast
	}
	d.DeliverNetworkPacket(eth.Type(), pkt)
}

// Receive waits for a packet to the guest.
func (e *Endpoint) Receive(pieces []virtq.Buffer, size int) (int, error) {
	for {
		e.mu.Lock()
		for e.head == len(e.queue) && !e.interrupt {
			e.cond.Wait()
		}
		if e.interrupt {
			e.interrupt = false
			e.mu.Unlock()
			return 0, vnet.ErrClosed
		}
		o := e.pop()
		f := e.features
		e.mu.Unlock()
		n := o.copyTo(pieces, size, f)
		o.release()
		if n > 0 {
			return n, nil
		}
	}
}

// pop takes the oldest packet. Preconditions: e.mu is held, one waits.
func (e *Endpoint) pop() outgoing {
	o := e.queue[e.head]
	e.queue[e.head] = outgoing{}
	e.head++
	e.queued -= o.size()
	if e.head == len(e.queue) {
		e.queue, e.head = e.queue[:0], 0
	}
	return o
}

// push queues a packet, or drops it when the guest does not keep up.
func (e *Endpoint) push(o outgoing) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.queue)-e.head >= maxQueuedPackets || e.queued+o.size() > maxQueuedBytes {
		o.release()
		return false
	}
	if e.head > maxQueuedPackets {
		e.queue = append(e.queue[:0], e.queue[e.head:]...)
		e.head = 0
	}
	e.queue = append(e.queue, o)
	e.queued += o.size()
	e.cond.Signal()
	return true
}

func (o outgoing) size() int {
	if o.pkt != nil {
		return o.pkt.Size()
	}
	return len(o.frame)
}

func (o outgoing) release() {
	if o.pkt != nil {
		o.pkt.DecRef()
	}
}

// copyTo writes header and frame to the guest's buffers and returns the
// length, 0 if there is no room.
func (o outgoing) copyTo(pieces []virtq.Buffer, size int, f virtio.Features) int {
	if vnet.HeaderLen+o.size() > size {
		return 0
	}
	w := scatter{pieces: pieces}
	var hdr [vnet.HeaderLen]byte
	if o.pkt == nil {
		w.write(hdr[:])
		w.write(o.frame)
		return w.n
	}
	if !gsoHeader(&hdr, o.pkt, f) {
		return 0
	}
	w.write(hdr[:])
	for _, s := range o.pkt.AsSlices() {
		w.write(s)
	}
	return w.n
}

// gsoHeader describes netstack's offload to the guest (virtio 1.2 §5.1.6.4). It
// reports false for a packet that this driver cannot take: one of a connection
// that began under another driver, which negotiated more.
func gsoHeader(hdr *[vnet.HeaderLen]byte, pkt *stack.PacketBuffer, f virtio.Features) bool {
	gso := &pkt.GSOOptions
	if gso.Type == stack.GSONone || !gso.NeedsCsum {
		return true
	}
	if !f.Has(vnet.FGuestCsum) {
		return false
	}
	l2 := len(pkt.LinkHeader().Slice())
	hdr[0] = vnet.HdrFNeedsCsum
	binary.LittleEndian.PutUint16(hdr[6:], uint16(l2)+gso.L3HdrLen)
	binary.LittleEndian.PutUint16(hdr[8:], gso.CsumOffset)
	if pkt.Data().Size() <= int(gso.MSS) {
		return true
	}
	feature := uint(vnet.FGuestTSO4)
	hdr[1] = vnet.GSOTCPv4
	if gso.Type == stack.GSOTCPv6 {
		feature, hdr[1] = vnet.FGuestTSO6, vnet.GSOTCPv6
	}
	binary.LittleEndian.PutUint16(hdr[2:], uint16(l2+len(pkt.NetworkHeader().Slice())+len(pkt.TransportHeader().Slice())))
	binary.LittleEndian.PutUint16(hdr[4:], gso.MSS)
	return f.Has(feature)
}

// scatter writes into a list of buffers.
type scatter struct {
	pieces []virtq.Buffer
	at     int // bytes used of pieces[0]
	n      int // bytes written
}

func (s *scatter) write(p []byte) {
	for len(p) > 0 && len(s.pieces) > 0 {
		k := copy(s.pieces[0].Bytes[s.at:], p)
		p = p[k:]
		s.at += k
		s.n += k
		if s.at == len(s.pieces[0].Bytes) {
			s.pieces, s.at = s.pieces[1:], 0
		}
	}
}

// Interrupt ends a Receive.
func (e *Endpoint) Interrupt() {
	e.mu.Lock()
	e.interrupt = true
	e.cond.Broadcast()
	e.mu.Unlock()
}

// WritePackets queues netstack's packets for the guest.
func (e *Endpoint) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	n := 0
	for _, pkt := range pkts.AsSlice() {
		if !e.push(outgoing{pkt: pkt.IncRef()}) {
			return n, &tcpip.ErrNoBufferSpace{}
		}
		n++
	}
	return n, nil
}

// AddHeader writes the Ethernet header of an outgoing packet.
func (e *Endpoint) AddHeader(pkt *stack.PacketBuffer) {
	header.Ethernet(pkt.LinkHeader().Push(header.EthernetMinimumSize)).Encode(&header.EthernetFields{
		SrcAddr: e.LinkAddress(),
		DstAddr: pkt.EgressRoute.RemoteLinkAddress,
		Type:    pkt.NetworkProtocolNumber,
	})
}

// ParseHeader reads the Ethernet header of a packet.
func (e *Endpoint) ParseHeader(pkt *stack.PacketBuffer) bool {
	_, ok := pkt.LinkHeader().Consume(header.EthernetMinimumSize)
	return ok
}

// MTU is the constant MTU; SetMTU does nothing.
func (e *Endpoint) MTU() uint32 { return MTU }

// SetMTU does nothing: the MTU is fixed.
func (e *Endpoint) SetMTU(uint32) {}

// MaxHeaderLength is an Ethernet header.
func (e *Endpoint) MaxHeaderLength() uint16 { return header.EthernetMinimumSize }

// LinkAddress is the gateway's MAC address.
func (e *Endpoint) LinkAddress() tcpip.LinkAddress {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.mac
}

// SetLinkAddress changes it.
func (e *Endpoint) SetLinkAddress(a tcpip.LinkAddress) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mac = a
}

// Capabilities: neighbours are resolved, and incoming checksums were checked.
func (e *Endpoint) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityResolutionRequired | stack.CapabilityRXChecksumOffload
}

// GSOMaxSize is the largest packet for segmentation offload.
func (e *Endpoint) GSOMaxSize() uint32 { return gsoMax }

// SupportedGSO is host GSO if the guest can take it.
func (e *Endpoint) SupportedGSO() stack.SupportedGSO {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.features.Has(vnet.FGuestCsum) && e.features.Has(vnet.FGuestTSO4) && e.features.Has(vnet.FGuestTSO6) {
		return stack.HostGSOSupported
	}
	return stack.GSONotSupported
}

// Attach connects netstack, or disconnects it with nil.
func (e *Endpoint) Attach(d stack.NetworkDispatcher) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.dispatcher = d
}

// IsAttached reports whether netstack is connected.
func (e *Endpoint) IsAttached() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.dispatcher != nil
}

// Wait has nothing to wait for: there are no goroutines.
func (e *Endpoint) Wait() {}

// ARPHardwareType is Ethernet.
func (e *Endpoint) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }

// Close runs the action of SetOnCloseAction.
func (e *Endpoint) Close() {
	e.mu.Lock()
	f := e.onClose
	e.mu.Unlock()
	if f != nil {
		f()
	}
}

// SetOnCloseAction sets what Close runs.
func (e *Endpoint) SetOnCloseAction(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.onClose = f
}
