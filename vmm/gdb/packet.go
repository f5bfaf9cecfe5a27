package gdb

import (
	"bufio"
	"errors"
	"io"
)

// maxPacket is the longest packet, in bytes between '$' and '#' after
// unescaping, that is taken and announced.
const maxPacket = 0x4000

// interrupt is what a debugger sends to stop the machine, outside of packets.
const interrupt = 0x03

// Bytes of the framing (Debugging with GDB, E.1).
const (
	packetStart = '$'
	packetEnd   = '#'
	escape      = '}'
	escapeXor   = 0x20
	ack         = '+'
	nak         = '-'
)

// errBadPacket is a packet whose checksum is wrong or that is too long.
var errBadPacket = errors.New("gdb: bad packet")

// readPacket returns the next packet's data, unescaped, or "" and true for an
// interrupt. Acknowledgements are skipped. Behind errBadPacket the stream goes on.
func readPacket(r *bufio.Reader) (data []byte, intr bool, err error) {
	for {
		b, err := r.ReadByte()
		if err != nil {
			return nil, false, err
		}
		switch b {
		case interrupt:
			return nil, true, nil
		case packetStart:
			data, err := readBody(r)
			return data, false, err
		}
	}
}

// readBody reads what follows '$'.
func readBody(r *bufio.Reader) ([]byte, error) {
	var data []byte
	sum, long, escaped := uint8(0), false, false
	for {
		b, err := r.ReadByte()
		switch {
		case err != nil:
			return nil, err
		case b == packetEnd:
			return data, readSum(r, sum, long)
		case b == packetStart: // the last packet was cut off
			data, sum, long, escaped = data[:0], 0, false, false
			continue
		}
		sum += b
		switch {
		case escaped:
			b, escaped = b^escapeXor, false
		case b == escape:
			escaped = true
			continue
		}
		if long = long || len(data) >= maxPacket; !long {
			data = append(data, b)
		}
	}
}

// readSum reads and compares the two digits of the checksum.
func readSum(r *bufio.Reader, sum uint8, long bool) error {
	var d [2]byte
	if _, err := io.ReadFull(r, d[:]); err != nil {
		return err
	}
	if want, err := parseHex(string(d[:])); err != nil || long || uint8(want) != sum {
		return errBadPacket
	}
	return nil
}

// appendPacket frames data.
func appendPacket(b []byte, data string) []byte {
	b = append(b, packetStart)
	sum := uint8(0)
	for i := range len(data) {
		c := data[i]
		if c == packetStart || c == packetEnd || c == escape || c == '*' {
			b = append(b, escape)
			sum += escape
			c ^= escapeXor
		}
		b = append(b, c)
		sum += c
	}
	const digits = "0123456789abcdef"
	return append(b, packetEnd, digits[sum>>4], digits[sum&15])
}
