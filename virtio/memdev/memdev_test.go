package memdev

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/virtiotest"
	"github.com/gvmspawn/gvmspawn/virtio/virtq/virtqtest"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

var (
	_ virtio.Device = (*Device)(nil)
	_ Region        = (*mem.Region)(nil)
)

const (
	base  = 1 << 32
	block = mem.BlockSize
	size  = 16 * block
)

// machine is a device over a region of its own, of which half is requested.
func machine(t testing.TB, o virtiotest.Options) (*Device, *virtiotest.Machine, *mem.Region) {
	t.Helper()
	m := mem.New()
	t.Cleanup(func() { _ = m.Close() })
	r, err := m.Add("hotplug", base, size, mem.Pluggable)
	if err != nil {
		t.Fatal(err)
	}
	d, err := New(Config{Region: r, Addr: base, BlockSize: block, Requested: size / 2})
	if err != nil {
		t.Fatal(err)
	}
	return d, virtiotest.New(t, d, o), r
}

// request is struct virtio_mem_req.
func request(kind uint16, addr uint64, blocks uint16) []byte {
	b := make([]byte, reqSize)
	binary.LittleEndian.PutUint16(b, kind)
	binary.LittleEndian.PutUint64(b[reqAddr:], addr)
	binary.LittleEndian.PutUint16(b[reqBlocks:], blocks)
	return b
}

// ask sends a request and returns response type and state.
func ask(q *virtqtest.Driver, req []byte) (resp, state uint16) {
	in := q.Do([][]byte{req}, []int{respSize}).In[0]
	return binary.LittleEndian.Uint16(in), binary.LittleEndian.Uint16(in[respState:])
}

// §5.15.4.
func TestConfig(t *testing.T) {
	d, m, _ := machine(t, virtiotest.Options{})
	le := binary.LittleEndian
	want := le.AppendUint64(nil, block)
	want = append(want, 0, 0, 0, 0, 0, 0, 0, 0)
	for _, v := range []uint64{base, size, size, 0, size / 2} {
		want = le.AppendUint64(want, v)
	}
	d.WriteConfig(configRequestedSize, []byte{1, 2, 3, 4})
	if got := m.Config(0, configSize); !bytes.Equal(got, want) {
		t.Errorf("config %x, want %x", got, want)
	}
	if err := d.SetRequested(size + 1); err == nil {
		t.Error("more than the region can be requested")
	}
	if err := d.SetRequested(block + 1); err != nil || d.Requested() != 2*block {
		t.Errorf("requested %d, %v", d.Requested(), err)
	}
	<-m.ConfigChanged()
	if err := d.SetRequested(2 * block); err != nil || m.ConfigChanges() != 1 {
		t.Errorf("%d changes, %v", m.ConfigChanges(), err)
	}
}

func TestNewErrors(t *testing.T) {
	m := mem.New()
	t.Cleanup(func() { _ = m.Close() })
	r, err := m.Add("hotplug", base, size, mem.Pluggable)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []Config{
		{Region: r, Addr: base, BlockSize: 3 << 20}, {Region: r, Addr: base, BlockSize: 2048}, {Region: r, Addr: base + 4096, BlockSize: block},
		{Region: r, Addr: base, BlockSize: 2 * size}, {Region: r, Addr: base, BlockSize: block, Requested: size + 1},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("no error for %+v", c)
		}
	}
}

// §5.15.6: every request with every answer; row 25: plugging outside the region.
func TestRequests(t *testing.T) {
	d, m, r := machine(t, virtiotest.Options{})
	const ack, nack, bad = VIRTIO_MEM_RESP_ACK, VIRTIO_MEM_RESP_NACK, VIRTIO_MEM_RESP_ERROR
	for i, c := range []struct {
		req         []byte
		resp, state uint16
		plugged     uint64 // blocks afterwards
	}{
		{request(VIRTIO_MEM_REQ_STATE, base, 16), ack, VIRTIO_MEM_STATE_UNPLUGGED, 0},
		{request(VIRTIO_MEM_REQ_PLUG, base, 4), ack, 0, 4},
		{request(VIRTIO_MEM_REQ_STATE, base, 4), ack, VIRTIO_MEM_STATE_PLUGGED, 4},
		{request(VIRTIO_MEM_REQ_STATE, base+3*block, 2), ack, VIRTIO_MEM_STATE_MIXED, 4},
		{request(VIRTIO_MEM_REQ_PLUG, base+3*block, 2), bad, 0, 4},           // one is plugged
		{request(VIRTIO_MEM_REQ_PLUG, base+8*block, 5), nack, 0, 4},          // more than requested
		{request(VIRTIO_MEM_REQ_PLUG, base+4*block, 12), nack, 0, 4},         // much more
		{request(VIRTIO_MEM_REQ_PLUG, base+12*block, 4), ack, 0, 8},          // all of it, at the end
		{request(VIRTIO_MEM_REQ_PLUG, base+8*block, 1), nack, 0, 8},          // one more
		{request(VIRTIO_MEM_REQ_UNPLUG, base+3*block, 2), bad, 0, 8},         // one is unplugged
		{request(VIRTIO_MEM_REQ_UNPLUG, base+1*block, 2), ack, 0, 6},         //
		{request(VIRTIO_MEM_REQ_UNPLUG, base+1*block, 2), bad, 0, 6},         // twice
		{request(VIRTIO_MEM_REQ_PLUG, base+15*block, 2), bad, 0, 6},          // beyond the end
		{request(VIRTIO_MEM_REQ_PLUG, base+16*block, 1), bad, 0, 6},          // behind it
		{request(VIRTIO_MEM_REQ_PLUG, base-block, 1), bad, 0, 6},             // before the region
		{request(VIRTIO_MEM_REQ_PLUG, 0, 1), bad, 0, 6},                      // the machine's own RAM
		{request(VIRTIO_MEM_REQ_PLUG, 1<<64-block, 2), bad, 0, 6},            // the sum overflows
		{request(VIRTIO_MEM_REQ_PLUG, base+1<<20, 1), bad, 0, 6},             // not aligned
		{request(VIRTIO_MEM_REQ_PLUG, base+block, 0), bad, 0, 6},             // none
		{request(VIRTIO_MEM_REQ_PLUG, base, 65535), bad, 0, 6},               // too many
		{request(4, base, 1), bad, 0, 6},                                     // unknown
		{request(VIRTIO_MEM_REQ_PLUG, base+block, 1)[:reqBlocks], bad, 0, 6}, // short
		{[]byte{2, 0}, bad, 0, 6},                                            // shorter
		{request(VIRTIO_MEM_REQ_UNPLUG_ALL, 0, 0)[:reqAddr], ack, 0, 0},
		{request(VIRTIO_MEM_REQ_UNPLUG_ALL, 1, 1), ack, 0, 0},
	} {
		resp, state := ask(m.Queue[0], c.req)
		if resp != c.resp || state != c.state || d.Plugged() != c.plugged*block {
			t.Errorf("%d: %x: response %d state %d, %d blocks plugged", i, c.req, resp, state, d.Plugged()/block)
		}
		if got := binary.LittleEndian.Uint64(m.Config(configPluggedSize, 8)); got != d.Plugged() {
			t.Errorf("%d: plugged_size %d", i, got)
		}
	}
	if !r.Unplugged(0, size) {
		t.Error("blocks are left")
	}
}

// Less requested than plugged: the driver may still unplug, and plugs nothing.
func TestShrink(t *testing.T) {
	d, m, _ := machine(t, virtiotest.Options{})
	ask(m.Queue[0], request(VIRTIO_MEM_REQ_PLUG, base, 8))
	if err := d.SetRequested(block); err != nil {
		t.Fatal(err)
	}
	<-m.ConfigChanged()
	if resp, _ := ask(m.Queue[0], request(VIRTIO_MEM_REQ_PLUG, base+8*block, 1)); resp != VIRTIO_MEM_RESP_NACK {
		t.Errorf("plugging above the requested size: %d", resp)
	}
	if resp, _ := ask(m.Queue[0], request(VIRTIO_MEM_REQ_UNPLUG, base+block, 7)); resp != VIRTIO_MEM_RESP_ACK || d.Plugged() != block {
		t.Errorf("response %d, %d plugged", resp, d.Plugged())
	}
}

// §5.15.5: a device reset changes no block.
func TestReset(t *testing.T) {
	d, m, r := machine(t, virtiotest.Options{})
	ask(m.Queue[0], request(VIRTIO_MEM_REQ_PLUG, base, 3))
	m.Reset()
	if d.Plugged() != 3*block || !r.Plugged(0, 3*block) {
		t.Errorf("%d plugged after a reset", d.Plugged())
	}
	if err := d.SetRequested(0); err != nil {
		t.Error(err)
	}
	if err := m.Activate(); err != nil {
		t.Fatal(err)
	}
	if resp, state := ask(m.Queue[0], request(VIRTIO_MEM_REQ_STATE, base, 3)); resp != VIRTIO_MEM_RESP_ACK || state != VIRTIO_MEM_STATE_PLUGGED {
		t.Errorf("response %d state %d", resp, state)
	}
}

// A response buffer that is too short, or none.
func TestShortResponse(t *testing.T) {
	d, m, _ := machine(t, virtiotest.Options{})
	if u := m.Queue[0].Do([][]byte{request(VIRTIO_MEM_REQ_PLUG, base, 1)}, nil); u.Written != 0 {
		t.Errorf("wrote %d bytes", u.Written)
	}
	if u := m.Queue[0].Do([][]byte{request(VIRTIO_MEM_REQ_PLUG, base+block, 1)}, []int{3}); u.Written != 3 {
		t.Errorf("wrote %d bytes", u.Written)
	}
	if d.Plugged() != 2*block {
		t.Errorf("%d plugged", d.Plugged())
	}
}

func TestAllocs(t *testing.T) {
	_, m, _ := machine(t, virtiotest.Options{})
	gpa := m.Mem.Alloc(64)
	copy(m.Mem.Bytes(gpa, reqSize), request(VIRTIO_MEM_REQ_STATE, base, 16))
	again := m.Queue[0].Again(virtqtest.Desc{Addr: gpa, Len: reqSize}, virtqtest.Desc{Addr: gpa + 32, Len: respSize, Flags: virtqtest.DescWrite})
	if n := testing.AllocsPerRun(300, again); n != 0 {
		t.Errorf("%v allocations per request", n)
	}
}

func FuzzRequest(f *testing.F) {
	f.Add(request(VIRTIO_MEM_REQ_PLUG, base, 4), uint16(10))
	f.Add(request(VIRTIO_MEM_REQ_UNPLUG, base, 65535), uint16(0))
	f.Fuzz(func(t *testing.T, req []byte, room uint16) {
		d, m, r := machine(t, virtiotest.Options{})
		for range 3 {
			var lens []int
			if room > 0 {
				lens = append(lens, int(room))
			}
			if len(req) == 0 {
				return
			}
			m.Queue[0].Do([][]byte{req}, lens)
		}
		var n uint64
		for off := uint64(0); off < size; off += block {
			if r.Plugged(off, block) {
				n += block
			}
		}
		if n != d.Plugged() || n > d.Requested() {
			t.Errorf("%d plugged, %d counted, %d requested", n, d.Plugged(), d.Requested())
		}
	})
}
