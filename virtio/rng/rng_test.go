package rng_test

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/rng"
	"github.com/gvmspawn/gvmspawn/virtio/virtiotest"
	"github.com/gvmspawn/gvmspawn/virtio/virtq/virtqtest"
)

// counter is a deterministic source.
type counter struct{ n byte }

func (c *counter) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = c.n
		c.n++
	}
	return len(p), nil
}

func device(t testing.TB, cfg rng.Config) *rng.Device {
	t.Helper()
	d, err := rng.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var _ virtio.Device = d
	return d
}

// §5.4.6.1: the device places one or more random bytes into the buffer.
func TestKernelSource(t *testing.T) {
	m := virtiotest.New(t, device(t, rng.Config{}), virtiotest.Options{EventIdx: true})
	a, b := m.Queue[0].Do(nil, []int{16, 32}), m.Queue[0].Do(nil, []int{48})
	if a.Written != 48 || b.Written != 48 || bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Errorf("got %x and %x", a.Bytes(), b.Bytes())
	}
}

// An injected source is used byte for byte, across buffers.
func TestSeededSource(t *testing.T) {
	m := virtiotest.New(t, device(t, rng.Config{Source: new(counter)}), virtiotest.Options{})
	u := m.Queue[0].Do(nil, []int{1, 2, 3})
	if !bytes.Equal(u.Bytes(), []byte{0, 1, 2, 3, 4, 5}) {
		t.Errorf("got %x", u.Bytes())
	}
}

// Row 25: a huge request is answered in part, one without room with nothing.
func TestBounds(t *testing.T) {
	m := virtiotest.New(t, device(t, rng.Config{Source: new(counter)}), virtiotest.Options{})
	if u := m.Queue[0].Do(nil, []int{1 << 20, 1 << 20}); u.Written != rng.MaxRequest || u.In[0][rng.MaxRequest] != virtqtest.Fill {
		t.Errorf("wrote %d bytes", u.Written)
	}
	if u := m.Queue[0].Do([][]byte{{1, 2, 3}}, nil); u.Written != 0 || m.NeedsReset() {
		t.Errorf("wrote %d bytes", u.Written)
	}
}

// A source that fails is an error state that only a reset can leave (§2.1.2).
func TestBrokenSource(t *testing.T) {
	m := virtiotest.New(t, device(t, rng.Config{Source: iotest{errors.New("no entropy")}}), virtiotest.Options{})
	m.Queue[0].Add(nil, []int{8})
	m.Queue[0].Kick()
	for !m.NeedsReset() {
		time.Sleep(time.Millisecond)
	}
	m.Reset()
}

type iotest struct{ err error }

func (r iotest) Read([]byte) (int, error) { return 0, r.err }

var _ io.Reader = iotest{}

// The rate holds, and a request that waits for it does not hold up a reset.
func TestRate(t *testing.T) {
	m := virtiotest.New(t, device(t, rng.Config{Source: new(counter), Rate: 1000}), virtiotest.Options{})
	start := time.Now()
	got := 0
	for got < 1200 { // a burst of 1000, then 200 in 0.2 s
		got += int(m.Queue[0].Do(nil, []int{100}).Written)
	}
	if d := time.Since(start); d < 150*time.Millisecond {
		t.Errorf("%d bytes in %v", got, d)
	}
	m.Queue[0].Add(nil, []int{64 << 10})
	m.Queue[0].Kick()
	time.Sleep(5 * time.Millisecond)
	start = time.Now()
	m.Reset()
	if d := time.Since(start); d > time.Second {
		t.Errorf("reset took %v", d)
	}
	if _, err := rng.New(rng.Config{Rate: -1}); err == nil {
		t.Error("negative rate accepted")
	}
}

func TestAllocs(t *testing.T) {
	m := virtiotest.New(t, device(t, rng.Config{}), virtiotest.Options{})
	request := m.Queue[0].Again(virtqtest.Desc{Addr: m.Mem.Alloc(64), Len: 64, Flags: virtqtest.DescWrite})
	if n := testing.AllocsPerRun(500, request); n != 0 {
		t.Errorf("%v allocations per request", n)
	}
}

func FuzzRequests(f *testing.F) {
	f.Add([]byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, shape []byte) {
		m := virtiotest.New(t, device(t, rng.Config{Source: new(counter)}), virtiotest.Options{})
		for _, s := range shape {
			var out [][]byte
			if s&1 != 0 {
				out = append(out, make([]byte, s))
			}
			in := make([]int, s>>6)
			total := 0
			for i := range in {
				in[i] = int(s) + 1
				total += in[i]
			}
			if len(out)+len(in) == 0 {
				continue
			}
			if u := m.Queue[0].Do(out, in); int(u.Written) != total {
				t.Fatalf("wrote %d of %d", u.Written, total)
			}
		}
	})
}
