package net

// Feature bit numbers of the network device (virtio 1.2 §5.1.3).
const (
	FCsum          = 0  // device handles packets with partial checksum
	FGuestCsum     = 1  // driver handles packets with partial checksum
	FMTU           = 3  // maximum MTU is in the configuration
	FMAC           = 5  // MAC address is in the configuration
	FGuestTSO4     = 7  // driver can receive TSOv4
	FGuestTSO6     = 8  // driver can receive TSOv6
	FGuestECN      = 9  // driver can receive TSO with ECN
	FGuestUFO      = 10 // driver can receive UFO
	FHostTSO4      = 11 // device can receive TSOv4
	FHostTSO6      = 12 // device can receive TSOv6
	FHostECN       = 13 // device can receive TSO with ECN
	FHostUFO       = 14 // device can receive UFO
	FMrgRxbuf      = 15 // driver can merge receive buffers
	FStatus        = 16 // link status is in the configuration
	FCtrlVQ        = 17 // control queue
	FCtrlRX        = 18 // control queue RX mode
	FCtrlVLAN      = 19 // control queue VLAN filtering
	FCtrlRXExtra   = 20 // control queue extra RX modes
	FGuestAnnounce = 21 // driver can send gratuitous packets
	FMQ            = 22 // several queue pairs
	FCtrlMACAddr   = 23 // set the MAC address by the control queue
	FGuestUSO4     = 54 // driver can receive USOv4
	FGuestUSO6     = 55 // driver can receive USOv6
	FHostUSO       = 56 // device can receive USO
	FSpeedDuplex   = 63 // speed and duplex are in the configuration
)

// Device configuration layout (virtio 1.2 §5.1.4), byte offsets.
const (
	cfgMAC      = 0  // u8[6]
	cfgStatus   = 6  // le16
	cfgMaxPairs = 8  // le16
	cfgMTU      = 10 // le16
	cfgSpeed    = 12 // le32, Mbit/s
	cfgDuplex   = 16 // u8
	cfgSize     = 17

	minMTU = 68 // §5.1.4.1
	// maxEthernet is the low level header that comes on top of the MTU, with a VLAN tag.
	maxEthernet = 18

	statusLinkUp   = 1
	statusAnnounce = 2
	// duplexFull is what Linux takes for it; §5.1.4.1 has the two values the
	// other way round.
	duplexFull = 1
)

// struct virtio_net_hdr (virtio 1.2 §5.1.6), byte offsets. With VERSION_1 it
// always has num_buffers.
const (
	HeaderLen = 12

	hdrFlags      = 0  // u8
	HdrGSOType    = 1  // u8
	hdrHdrLen     = 2  // le16
	HdrGSOSize    = 4  // le16
	hdrCsumStart  = 6  // le16
	hdrCsumOffset = 8  // le16
	hdrNumBuffers = 10 // le16
)

// Header flags and GSO types (virtio 1.2 §5.1.6).
const (
	HdrFNeedsCsum = 1
	HdrFDataValid = 2

	GSONone  = 0
	GSOTCPv4 = 1
	GSOUDP   = 3
	GSOTCPv6 = 4
	GSOUDPL4 = 5
	GSOECN   = 0x80
)

// Control queue (virtio 1.2 §5.1.6.5).
const (
	ctrlOK  = 0
	ctrlErr = 1

	ctrlRX            = 0
	ctrlRXPromisc     = 0
	ctrlRXAllMulti    = 1
	ctrlRXAllUni      = 2 // from here on with CTRL_RX_EXTRA
	ctrlRXNoMulti     = 3
	ctrlRXNoUni       = 4
	ctrlRXNoBroadcast = 5
	ctrlRXMax         = ctrlRXNoBroadcast
	ctrlMAC           = 1
	ctrlMACTable      = 0
	ctrlMACAddr       = 1
	ctrlVLAN          = 2
	ctrlVLANAdd       = 0
	ctrlVLANDel       = 1
	ctrlAnnounce      = 3
	ctrlAnnAck        = 0
	ctrlMQ            = 4
	ctrlMQPairs       = 0
)

// MaxPacket bounds a packet with its header: a 64 KiB IP packet, Ethernet and
// VLAN headers (virtio 1.2 §5.1.6.3.1).
const MaxPacket = HeaderLen + 65550
