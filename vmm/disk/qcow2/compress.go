package qcow2

import (
	"bytes"
	"compress/flate"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/gvmspawn/gvmspawn/vmm/disk"
)

// unpacker reads compressed clusters. It keeps the last few, since a guest
// reads a cluster in pieces.
type unpacker struct {
	m *Image

	mu    sync.Mutex // guards the rest
	slots [8]struct {
		entry uint64 // 0 for none
		data  []byte
	}
	next   int
	packed []byte
	zstd   *zstd.Decoder
}

func (u *unpacker) init(m *Image) { u.m = m }

// packed is where the compressed bytes of an L2 entry are: the offset takes
// the low 62-(cluster_bits-8) bits, the number of further 512-byte sectors the rest.
func (m *Image) packed(e uint64) (off, n uint64) {
	x := 62 - (m.h.clusterBits - 8)
	off = e & (1<<x - 1)
	sectors := e&(1<<62-1)>>x + 1
	return off, sectors*disk.SectorSize - off%disk.SectorSize
}

// read fills bufs from the compressed cluster of an entry, in bytes into it.
func (u *unpacker) read(bufs [][]byte, entry, in uint64) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	entry &^= flagCopied
	data, err := u.find(entry)
	if err != nil {
		return err
	}
	data = data[in:]
	for _, b := range bufs {
		data = data[copy(b, data):]
	}
	return nil
}

func (u *unpacker) find(entry uint64) ([]byte, error) {
	for i := range u.slots {
		if u.slots[i].entry == entry {
			return u.slots[i].data, nil
		}
	}
	s := &u.slots[u.next]
	u.next = (u.next + 1) % len(u.slots)
	if s.data == nil {
		s.data = make([]byte, u.m.cluster)
	}
	s.entry = 0
	if err := u.unpack(s.data, entry); err != nil {
		return nil, err
	}
	s.entry = entry
	return s.data, nil
}

// unpack decompresses a cluster into out.
func (u *unpacker) unpack(out []byte, entry uint64) error {
	off, n := u.m.packed(entry)
	if off>>u.m.h.clusterBits >= u.m.refs.end || n > 2*u.m.cluster {
		return u.m.corrupt("compressed cluster of %d bytes at %#x", n, off)
	}
	if uint64(cap(u.packed)) < n {
		u.packed = make([]byte, n)
	}
	in := u.packed[:n]
	if err := u.m.readHost([][]byte{in}, off); err != nil {
		return err
	}
	var err error
	if u.m.h.compression == compressionZstd {
		err = u.unpackZstd(out, in)
	} else {
		r := flate.NewReader(bytes.NewReader(in))
		_, err = io.ReadFull(r, out)
	}
	if err != nil {
		return u.m.corrupt("compressed cluster at %#x: %v", off, err)
	}
	return nil
}

func (u *unpacker) unpackZstd(out, in []byte) error {
	if u.zstd == nil {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))
		if err != nil {
			return err
		}
		u.zstd = d
	}
	if err := u.zstd.Reset(bytes.NewReader(in)); err != nil {
		return err
	}
	_, err := io.ReadFull(u.zstd, out)
	return err
}

// forget drops the kept clusters: their storage may have a new use.
func (u *unpacker) forget() {
	u.mu.Lock()
	for i := range u.slots {
		u.slots[i].entry = 0
	}
	u.mu.Unlock()
}
