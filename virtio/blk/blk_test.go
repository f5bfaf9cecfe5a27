package blk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/virtiotest"
	"github.com/gvmspawn/gvmspawn/virtio/virtq/virtqtest"
	"github.com/gvmspawn/gvmspawn/vmm/disk"
	"github.com/gvmspawn/gvmspawn/vmm/disk/fakedisk"
)

var _ virtio.Device = (*Device)(nil)

func newRAM(n int) *fakedisk.RAM { return fakedisk.NewRAM(n) }

// setup is the configuration of a device and of its drive.
type setup struct {
	Config
	disk disk.Config
}

func newDevice(t testing.TB, img disk.Image, change ...func(*setup)) *Device {
	t.Helper()
	s := setup{Config{Queues: 1, Serial: "root.raw"}, disk.Config{Image: img, Discard: true, Log: slog.New(slog.DiscardHandler)}}
	for _, f := range change {
		f(&s)
	}
	s.Drive = disk.NewDrive(s.disk)
	d, err := New(s.Config)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func head(typ uint32, sector uint64) []byte {
	b := binary.LittleEndian.AppendUint32(nil, typ)
	b = binary.LittleEndian.AppendUint32(b, 0)
	return binary.LittleEndian.AppendUint64(b, sector)
}

func ranges(r ...[3]uint64) []byte {
	var b []byte
	for _, x := range r {
		b = binary.LittleEndian.AppendUint64(b, x[0])
		b = binary.LittleEndian.AppendUint32(b, uint32(x[1]))
		b = binary.LittleEndian.AppendUint32(b, uint32(x[2]))
	}
	return b
}

// status is the last device-writable byte.
func status(u virtqtest.Used) byte {
	last := u.In[len(u.In)-1]
	return last[len(last)-1]
}

// §5.2.4 and §5.2.3.
func TestConfig(t *testing.T) {
	m := virtiotest.New(t, newDevice(t, newRAM(1<<20), func(c *setup) { c.Queues = 4 }), virtiotest.Options{})
	b := m.Config(0, 64)
	le := binary.LittleEndian
	if le.Uint64(b) != 2048 || le.Uint32(b[12:]) != 254 || le.Uint32(b[20:]) != 512 || b[24] != 3 ||
		b[32] != 1 || le.Uint16(b[34:]) != 4 || le.Uint32(b[44:]) != 128 || b[56] != 1 {
		t.Errorf("config %x", b)
	}
	if b[33] != 0 || !bytes.Equal(b[57:60], []byte{0, 0, 0}) {
		t.Errorf("unused0 %x, unused1 %x (§5.2.5.2)", b[33], b[57:60])
	}
	want := virtio.Bits(2, 6, 9, 10, 11, 12, 13, 14)
	if f := m.Device.Features(); f != want {
		t.Errorf("features %#x, want %#x", f, want)
	}
	ro := newDevice(t, &fakedisk.RAM{Data: make([]byte, 512), NoWrites: true})
	if f := ro.Features(); f != virtio.Bits(2, 5, 6, 9, 10, 11) {
		t.Errorf("read-only features %#x", f)
	}
}

// §5.2.6: what is written is read, in every shape of buffers.
func TestReadWrite(t *testing.T) {
	readWrite(t, virtiotest.Options{EventIdx: true, Indirect: true})
	readWrite(t, virtiotest.Options{})
	readWrite(t, virtiotest.Options{Packed: true, EventIdx: true})
	readWrite(t, virtiotest.Options{Packed: true, Indirect: true})
}

func readWrite(t *testing.T, o virtiotest.Options) {
	t.Helper()
	img := newRAM(1 << 20)
	m := virtiotest.New(t, newDevice(t, img), o)
	q := m.Queue[0]
	r := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		sector, n := uint64(r.IntN(2000)), 1+r.IntN(40)
		data := make([]byte, n*sectorSize)
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		out := [][]byte{head(VIRTIO_BLK_T_OUT, sector)}
		in := []int{}
		for rest := data; len(rest) > 0; {
			k := min(len(rest), 1+r.IntN(3000))
			out = append(out, rest[:k])
			in = append(in, k)
			rest = rest[k:]
		}
		u := q.Do(out, []int{1})
		inside := sector+uint64(n) <= 2048
		if got := status(u); (got == VIRTIO_BLK_S_OK) != inside {
			t.Fatalf("write at %d+%d: status %d", sector, n, got)
		}
		if !inside {
			continue
		}
		u = q.Do([][]byte{head(VIRTIO_BLK_T_IN, sector)}, append(in, 1))
		if status(u) != VIRTIO_BLK_S_OK || int(u.Written) != len(data)+1 || !bytes.Equal(u.Bytes()[:len(data)], data) {
			t.Fatalf("read at %d+%d: status %d, %d written", sector, n, status(u), u.Written)
		}
	}
}

// Row 20 and the MUSTs of §5.2.6.2: what fails, and how.
func TestBadRequests(t *testing.T) {
	img := newRAM(1 << 20) // 2048 sectors
	m := virtiotest.New(t, newDevice(t, img), virtiotest.Options{})
	q := m.Queue[0]
	const ok, ioerr, unsupp = VIRTIO_BLK_S_OK, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP
	sector := make([]byte, 512)
	for name, c := range map[string]struct {
		out  [][]byte
		in   []int
		want byte
	}{
		"header short":           {[][]byte{make([]byte, 15)}, []int{1}, ioerr},
		"no header":              {nil, []int{513}, ioerr},
		"unknown type":           {[][]byte{head(99, 0)}, []int{512, 1}, unsupp},
		"sector beyond":          {[][]byte{head(0, 2048)}, []int{512, 1}, ioerr},
		"end beyond":             {[][]byte{head(0, 2047)}, []int{1024, 1}, ioerr},
		"sector overflow":        {[][]byte{head(0, 1<<63)}, []int{512, 1}, ioerr},
		"sector overflow 2":      {[][]byte{head(1, 1<<64-1), sector}, []int{1}, ioerr},
		"last sector":            {[][]byte{head(0, 2047)}, []int{512, 1}, ok},
		"odd length":             {[][]byte{head(0, 0)}, []int{511, 1}, ioerr},
		"odd write":              {[][]byte{head(1, 0), sector[:100]}, []int{1}, ioerr},
		"read without data":      {[][]byte{head(0, 0)}, []int{1}, ok},
		"write without data":     {[][]byte{head(1, 0)}, []int{1}, ok},
		"flush with data":        {[][]byte{head(4, 77), sector}, []int{512, 1}, ok},
		"status in the data":     {[][]byte{head(0, 0)}, []int{513}, ok},
		"status of two bytes":    {[][]byte{head(0, 0)}, []int{512, 2}, ioerr},
		"discard none":           {[][]byte{head(11, 0)}, []int{1}, ioerr},
		"discard odd":            {[][]byte{head(11, 0), make([]byte, 17)}, []int{1}, ioerr},
		"discard":                {[][]byte{head(11, 0), ranges([3]uint64{8, 8, 0}, [3]uint64{100, 0, 0})}, []int{1}, ok},
		"discard unmap":          {[][]byte{head(11, 0), ranges([3]uint64{8, 8, 1})}, []int{1}, unsupp},
		"discard overflow":       {[][]byte{head(11, 0), ranges([3]uint64{1<<64 - 1, 2, 0})}, []int{1}, ioerr},
		"discard beyond":         {[][]byte{head(11, 0), ranges([3]uint64{2047, 2, 0})}, []int{1}, ioerr},
		"discard huge":           {[][]byte{head(11, 0), ranges([3]uint64{0, 1<<32 - 1, 0})}, []int{1}, ioerr},
		"discard many":           {[][]byte{head(11, 0), ranges(make([][3]uint64, 17)...)}, []int{1}, ioerr},
		"zeroes":                 {[][]byte{head(13, 0), ranges([3]uint64{0, 1, 0})}, []int{1}, ok},
		"zeroes unmap":           {[][]byte{head(13, 0), ranges([3]uint64{0, 1, 1})}, []int{1}, ok},
		"zeroes unknown flag":    {[][]byte{head(13, 0), ranges([3]uint64{0, 1, 2})}, []int{1}, unsupp},
		"zeroes sector overflow": {[][]byte{head(13, 0), ranges([3]uint64{1 << 55, 1, 0})}, []int{1}, ioerr},
	} {
		u := q.Do(c.out, c.in)
		if got := status(u); got != c.want {
			t.Errorf("%s: status %d, want %d", name, got, c.want)
		}
	}
	if u := q.Do([][]byte{head(1, 0), sector}, nil); u.Written != 0 {
		t.Errorf("no status byte: %d written", u.Written)
	}
	// A header in sixteen one-byte descriptors is a header.
	var bits [][]byte
	for _, b := range head(VIRTIO_BLK_T_IN, 0) {
		bits = append(bits, []byte{b})
	}
	if u := q.Do(bits, []int{512, 1}); status(u) != ok {
		t.Errorf("split header: status %d", status(u))
	}
	if len(img.Discards) != 1 || img.Discards[0] != (disk.Range{Off: 4096, N: 4096}) || len(img.Zeroes) != 2 || m.NeedsReset() {
		t.Errorf("discards %v, zeroes %v, needs reset %v", img.Discards, img.Zeroes, m.NeedsReset())
	}
}

// §5.2.6: GET_ID gives up to 20 bytes, padded with zeros.
func TestGetID(t *testing.T) {
	m := virtiotest.New(t, newDevice(t, newRAM(512)), virtiotest.Options{})
	u := m.Queue[0].Do([][]byte{head(VIRTIO_BLK_T_GET_ID, 0)}, []int{20, 1})
	if want := "root.raw" + strings.Repeat("\x00", 12); string(u.In[0]) != want || status(u) != VIRTIO_BLK_S_OK {
		t.Errorf("id %q, status %d", u.In[0], status(u))
	}
	u = m.Queue[0].Do([][]byte{head(VIRTIO_BLK_T_GET_ID, 0)}, []int{4, 1})
	if string(u.In[0]) != "root" || status(u) != VIRTIO_BLK_S_OK {
		t.Errorf("short id %q", u.In[0])
	}
	if _, err := New(Config{Drive: disk.NewDrive(disk.Config{Image: newRAM(512)}), Queues: 1, Serial: strings.Repeat("s", 21)}); err == nil {
		t.Error("long serial accepted")
	}
	if _, err := New(Config{Drive: disk.NewDrive(disk.Config{Image: newRAM(512)})}); err == nil {
		t.Error("0 queues accepted")
	}
}

// §5.2.6.2: a write to a read-only device fails and changes nothing.
func TestReadOnly(t *testing.T) {
	img := newRAM(4096)
	img.NoWrites = true
	m := virtiotest.New(t, newDevice(t, img), virtiotest.Options{})
	for _, out := range [][][]byte{
		{head(VIRTIO_BLK_T_OUT, 0), bytes.Repeat([]byte{1}, 512)},
		{head(VIRTIO_BLK_T_DISCARD, 0), ranges([3]uint64{0, 1, 0})},
		{head(VIRTIO_BLK_T_WRITE_ZEROES, 0), ranges([3]uint64{0, 1, 0})},
	} {
		if u := m.Queue[0].Do(out, []int{1}); status(u) != VIRTIO_BLK_S_IOERR {
			t.Errorf("status %d", status(u))
		}
	}
	if !bytes.Equal(img.Data, make([]byte, 4096)) || img.Discards != nil || img.Zeroes != nil {
		t.Error("image changed")
	}
}

// §5.2.6.2: in write-through mode a write is durable before it is answered.
func TestWriteCache(t *testing.T) {
	img := newRAM(4096)
	m := virtiotest.New(t, newDevice(t, img), virtiotest.Options{})
	write := func() { m.Queue[0].Do([][]byte{head(VIRTIO_BLK_T_OUT, 0), make([]byte, 512)}, []int{1}) }
	write()
	if img.Flushes() != 0 {
		t.Error("write-back flushed")
	}
	m.Device.WriteConfig(32, []byte{0})
	if m.Config(32, 1)[0] != 0 {
		t.Error("writeback still 1")
	}
	write()
	if img.Flushes() != 1 {
		t.Errorf("write-through: %d flushes", img.Flushes())
	}
	m.Device.WriteConfig(0, make([]byte, 32)) // read-only fields
	m.Queue[0].Do([][]byte{head(VIRTIO_BLK_T_FLUSH, 0)}, []int{1})
	if img.Flushes() != 2 {
		t.Errorf("flush: %d flushes", img.Flushes())
	}
	// Without FLUSH and CONFIG_WCE every write is written through.
	m = virtiotest.New(t, newDevice(t, img), virtiotest.Options{Features: virtio.Bits(VIRTIO_BLK_F_SEG_MAX)})
	write()
	if img.Flushes() != 3 {
		t.Errorf("driver without flush: %d flushes", img.Flushes())
	}
	// §5.2.5.2: with CONFIG_WCE alone the cache is off until the driver turns it on.
	m = virtiotest.New(t, newDevice(t, img), virtiotest.Options{Features: virtio.Bits(VIRTIO_BLK_F_CONFIG_WCE)})
	write()
	if m.Config(32, 1)[0] != 0 || img.Flushes() != 4 {
		t.Errorf("CONFIG_WCE alone: writeback %d, %d flushes", m.Config(32, 1)[0], img.Flushes())
	}
	m.Device.WriteConfig(32, []byte{1})
	write()
	if m.Config(32, 1)[0] != 1 || img.Flushes() != 4 {
		t.Errorf("turned on: writeback %d, %d flushes", m.Config(32, 1)[0], img.Flushes())
	}
}

// The image's errors reach the guest, and the device lives on.
func TestHostErrors(t *testing.T) {
	var log bytes.Buffer
	img := newRAM(4096)
	m := virtiotest.New(t, newDevice(t, img, func(c *setup) { c.disk.Log = slog.New(slog.NewTextHandler(&log, nil)) }), virtiotest.Options{})
	img.Fail(errors.New("no space left on device"))
	for range 1000 {
		if u := m.Queue[0].Do([][]byte{head(VIRTIO_BLK_T_OUT, 0), make([]byte, 512)}, []int{1}); status(u) != VIRTIO_BLK_S_IOERR {
			t.Fatalf("status %d", status(u))
		}
	}
	if n := strings.Count(log.String(), "\n"); n != 1 {
		t.Errorf("%d log lines for 1000 errors", n)
	}
	img.Fail(nil)
	if u := m.Queue[0].Do([][]byte{head(VIRTIO_BLK_T_OUT, 0), make([]byte, 512)}, []int{1}); status(u) != VIRTIO_BLK_S_OK {
		t.Errorf("status %d", status(u))
	}
}

// A slow request holds up no other, and a reset waits for what is in flight.
func TestSlowRequests(t *testing.T) {
	img := newRAM(1 << 20)
	img.Gate = make(chan struct{})
	m := virtiotest.New(t, newDevice(t, img), virtiotest.Options{})
	// All requests become available at once: one alone may be waited for.
	s := m.Queue[0].Split
	const n = 50
	for i := range n + 1 {
		d := read4K(m)
		if i == n {
			copy(m.Mem.Bytes(d[0].Addr, 16), head(VIRTIO_BLK_T_GET_ID, 0))
		}
		for j := range d {
			if j < len(d)-1 {
				d[j].Flags |= virtqtest.DescNext
				d[j].Next = uint16(3*i + j + 1)
			}
			s.SetDesc(3*i+j, d[j])
		}
		s.SetAvail(uint16(i), uint16(3*i))
	}
	s.SetAvailIdx(n + 1)
	m.Queue[0].Bell.Ring()
	for end := time.Now().Add(virtqtest.Timeout); s.UsedIdx() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the last request waits for the others")
		}
	}
	reset := make(chan struct{})
	go func() { m.Reset(); close(reset) }()
	select {
	case <-reset:
		t.Error("reset returned with requests in flight")
	case <-time.After(10 * time.Millisecond):
	}
	close(img.Gate)
	<-reset
	if err := m.Activate(); err != nil {
		t.Fatal(err)
	}
	if u := m.Queue[0].Do([][]byte{head(VIRTIO_BLK_T_IN, 0)}, []int{512, 1}); status(u) != VIRTIO_BLK_S_OK {
		t.Errorf("after reset: status %d", status(u))
	}
}

// Several queues share one image; resets come at any time.
func TestQueuesAndResets(t *testing.T) { resets(t, 100) }

// Ten thousand resets under load, the long suite's.
func TestLongResets(t *testing.T) { virtiotest.LongResets(t, resets) }

func resets(t *testing.T, n int) {
	t.Helper()
	m := virtiotest.New(t, newDevice(t, newRAM(1<<20), func(c *setup) { c.Queues = 3 }), virtiotest.Options{EventIdx: true, Size: 64})
	for range n {
		for qi, q := range m.Queue {
			for i := range 10 {
				q.Add([][]byte{head(VIRTIO_BLK_T_OUT, uint64(qi*10+i)), make([]byte, 512)}, []int{1})
			}
			q.Kick()
		}
		m.Queue[1].Wait()
		m.Reset()
		if err := m.Activate(); err != nil {
			t.Fatal(err)
		}
	}
}

func read4K(m *virtiotest.Machine) []virtqtest.Desc {
	h, data, st := m.Mem.Alloc(16), m.Mem.Alloc(4096), m.Mem.Alloc(1)
	copy(m.Mem.Bytes(h, 16), head(VIRTIO_BLK_T_IN, 8))
	return []virtqtest.Desc{
		{Addr: h, Len: 16}, {Addr: data, Len: 4096, Flags: virtqtest.DescWrite}, {Addr: st, Len: 1, Flags: virtqtest.DescWrite},
	}
}

func TestAllocs(t *testing.T) {
	for _, img := range []disk.Image{fakedisk.Null{RAM: newRAM(1 << 20)}, newRAM(1 << 20)} {
		m := virtiotest.New(t, newDevice(t, img), virtiotest.Options{})
		if n := testing.AllocsPerRun(500, m.Queue[0].Again(read4K(m)...)); n != 0 {
			t.Errorf("%T: %v allocations per request", img, n)
		}
	}
}

// BenchmarkDevice4K is the device's own time per 4 KiB read, system call taken
// out: bursts of 64 requests, so that the wake-up is shared.
func BenchmarkDevice4K(b *testing.B) {
	m := virtiotest.New(b, newDevice(b, fakedisk.Null{RAM: newRAM(1 << 20)}), virtiotest.Options{})
	s := m.Queue[0].Split
	const burst = 64
	for i := range burst {
		for j, d := range read4K(m) {
			if j < 2 {
				d.Flags |= virtqtest.DescNext
				d.Next = uint16(3*i + j + 1)
			}
			s.SetDesc(3*i+j, d)
		}
	}
	idx := uint16(0)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N/burst + 1 {
		for i := range uint16(burst) {
			s.SetAvail(idx+i, 3*i)
		}
		idx += burst
		s.SetAvailIdx(idx)
		m.Queue[0].Bell.Ring()
		for s.UsedIdx() != idx {
			time.Sleep(time.Microsecond)
		}
	}
}

func FuzzRequest(f *testing.F) {
	f.Add(head(VIRTIO_BLK_T_IN, 0), uint16(512), uint8(1))
	f.Add(append(head(VIRTIO_BLK_T_DISCARD, 0), ranges([3]uint64{1, 2, 0})...), uint16(1), uint8(20))
	f.Fuzz(func(t *testing.T, out []byte, in uint16, cut uint8) {
		img := newRAM(64 << 10)
		m := virtiotest.New(t, newDevice(t, img), virtiotest.Options{})
		var bufs [][]byte
		if k := min(int(cut), len(out)); k > 0 {
			bufs = append(bufs, out[:k])
			out = out[k:]
		}
		if len(out) > 0 {
			bufs = append(bufs, out)
		}
		var lens []int
		if in > 0 {
			lens = []int{int(in)}
		}
		if len(bufs)+len(lens) > 0 {
			m.Queue[0].Do(bufs, lens)
		}
	})
}
