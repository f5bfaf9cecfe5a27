package balloon

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/virtiotest"
	"github.com/gvmspawn/gvmspawn/virtio/virtq/virtqtest"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

var _ virtio.Device = (*Device)(nil)

type hint struct {
	gpa mem.GPA
	n   uint64
}

// machine is a balloon with everything on, over its own RAM.
func machine(t testing.TB, change ...func(*Config)) (*Device, *virtiotest.Machine, chan hint) {
	t.Helper()
	m := virtqtest.NewMemory(t, 16<<20)
	hinted := make(chan hint, 100)
	cfg := Config{Memory: m.Memory, Reporting: true, Stats: true, Hint: func(gpa mem.GPA, n uint64) { hinted <- hint{gpa, n} }}
	for _, f := range change {
		f(&cfg)
	}
	d := New(cfg)
	return d, virtiotest.New(t, d, virtiotest.Options{Memory: m}), hinted
}

func pfns(p ...uint32) []byte {
	var b []byte
	for _, x := range p {
		b = binary.LittleEndian.AppendUint32(b, x)
	}
	return b
}

// §5.5.4, §5.5.3.
func TestConfig(t *testing.T) {
	d, m, _ := machine(t)
	if f := d.Features(); f != virtio.Bits(1, 2, 3, 4, 5) {
		t.Errorf("features %#x", f)
	}
	d.SetTarget(10<<20 + 5)
	<-m.ConfigChanged()
	d.SetTarget(10 << 20) // the same number of pages
	d.WriteConfig(4, pfns(2560))
	d.WriteConfig(0, pfns(1)) // read-only
	d.WriteConfig(5, []byte{1})
	if got := m.Config(0, 20); !bytes.Equal(got, append(pfns(2560, 2560, 0, 0), 0, 0, 0, 0)) {
		t.Errorf("config %x", got)
	}
	if d.Actual() != 10<<20 || m.ConfigChanges() != 1 {
		t.Errorf("actual %d, %d changes", d.Actual(), m.ConfigChanges())
	}
	m.Reset()
	if d.Actual() != 0 {
		t.Error("actual outlived the reset")
	}
}

// §5.5.6: pages in the balloon are the host's; row 25: wrong ones are ignored.
func TestInflate(t *testing.T) {
	_, m, _ := machine(t)
	const base = 8 << 20
	b := m.Mem.Bytes(base, 64<<12)
	fill := func() {
		for i := range b {
			b[i] = 1
		}
	}
	zero := func(page int) bool { return bytes.Equal(b[page<<12:(page+1)<<12], make([]byte, 4096)) }
	fill()
	p := uint32(base >> 12)
	list := pfns(p+3, p+4, p+5, p+10, p+9, p+8, p+20, p+20, 1<<32-1, 4095, 4096, 4097, p+30)
	m.Queue[0].Do([][]byte{list[:6], list[6:], {1, 2, 3}}, nil)
	for i := range 64 {
		want := (i >= 3 && i <= 5) || (i >= 8 && i <= 10) || i == 20 || i == 30
		if zero(i) != want {
			t.Errorf("page %d: discarded %v, want %v", i, zero(i), want)
		}
	}
	m.Queue[1].Do([][]byte{pfns(p+3, p+50)}, nil) // deflate, also what never was inflated
	m.Queue[0].Do(nil, []int{100})
	m.Queue[0].Do([][]byte{make([]byte, 1<<20)}, nil)
	if m.NeedsReset() {
		t.Error("device gave up")
	}
}

// §5.5.6.7: reported memory is dropped, whole pages only.
func TestReporting(t *testing.T) {
	_, m, _ := machine(t)
	q := m.Queue[queueReporting]
	gpa := m.Mem.Alloc(64 << 10)
	b := m.Mem.Bytes(gpa, 64<<10)
	for i := range b {
		b[i] = 7
	}
	q.Again(virtqtest.Desc{Addr: gpa + 100, Len: 3*4096 - 100, Flags: virtqtest.DescWrite},
		virtqtest.Desc{Addr: gpa + 32768, Len: 32768, Flags: virtqtest.DescWrite})()
	if b[4095] != 7 || b[4096] != 0 || b[3*4096-1] != 0 || b[3*4096] != 7 || b[32768] != 0 || b[65535] != 0 {
		t.Error("wrong pages dropped")
	}
}

// Row 25: pages of files (DAX, pmem) are no RAM, so they stay as they are, whether the
// guest reports them or puts them into the balloon.
func TestWindow(t *testing.T) {
	const base = 1 << 30
	memory := virtqtest.NewMemory(t, 16<<20)
	w, err := memory.Memory.Add("window", base, 2<<20, mem.Window)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(f.Truncate(8192), w.MapPrivate(0, int(f.Fd()), 0, 8192)); err != nil {
		t.Fatal(err)
	}
	b := w.Bytes()[:8192]
	for i := range b {
		b[i] = 7
	}
	m := virtiotest.New(t, New(Config{Memory: memory.Memory, Reporting: true}), virtiotest.Options{Memory: memory, Skip: []int{2, 3}})
	m.Queue[queueReporting].Again(virtqtest.Desc{Addr: base, Len: 8192, Flags: virtqtest.DescWrite})()
	m.Queue[queueInflate].Do([][]byte{pfns(base>>12, base>>12+1)}, nil)
	if !bytes.Equal(b, bytes.Repeat([]byte{7}, 8192)) || m.NeedsReset() {
		t.Errorf("pages of a file were dropped, needs reset %v", m.NeedsReset())
	}
}

// §5.5.6.7.2: with PAGE_POISON a reported page holds poison_val or what it held: it is
// dropped if that is 0, as of a Linux with init_on_free=1. Without the feature the
// value does not count, and none outlives a reset.
func TestPoison(t *testing.T) {
	for _, c := range []struct {
		features virtio.Features
		poison   uint32
		dropped  bool
	}{
		{virtio.Bits(VIRTIO_BALLOON_F_PAGE_REPORTING, VIRTIO_BALLOON_F_PAGE_POISON), 0, true},
		{virtio.Bits(VIRTIO_BALLOON_F_PAGE_REPORTING, VIRTIO_BALLOON_F_PAGE_POISON), 0xaaaaaaaa, false},
		{virtio.Bits(VIRTIO_BALLOON_F_PAGE_REPORTING), 0xaaaaaaaa, true},
	} {
		m := virtqtest.NewMemory(t, 16<<20)
		d := New(Config{Memory: m.Memory, Reporting: true})
		d.WriteConfig(12, pfns(c.poison)) // before DRIVER_OK (§5.5.6.6.1)
		vm := virtiotest.New(t, d, virtiotest.Options{Memory: m, Features: c.features, Skip: []int{2, 3}})
		if got := vm.Config(12, 4); !bytes.Equal(got, pfns(c.poison)) {
			t.Errorf("poison_val % x", got)
		}
		gpa := m.Alloc(8192)
		gpa = (gpa + 4095) &^ 4095
		b := m.Bytes(gpa, 4096)
		for i := range b {
			b[i] = 0xaa
		}
		vm.Queue[4].Again(virtqtest.Desc{Addr: gpa, Len: 4096, Flags: virtqtest.DescWrite})()
		if dropped := b[0] == 0 && b[4095] == 0; dropped != c.dropped {
			t.Errorf("features %#x, poison_val %#x: dropped %v", c.features, c.poison, dropped)
		}
		vm.Reset()
		if got := vm.Config(12, 4); !bytes.Equal(got, pfns(0)) {
			t.Errorf("poison_val % x after a reset", got)
		}
	}
}

// §5.5.6.3, §5.5.6.4.
func TestStats(t *testing.T) {
	d, m, _ := machine(t)
	q := m.Queue[queueStats]
	stat := func(tag uint16, v uint64) []byte {
		return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint16(nil, tag), v)
	}
	q.Add([][]byte{stat(VIRTIO_BALLOON_S_MEMFREE, 1)}, nil) // the first buffer is only for us to hold
	q.Kick()
	type result struct {
		Stats
		error
	}
	ch := make(chan result)
	for i := range uint64(3) {
		go func() {
			s, err := d.Stats(context.Background())
			ch <- result{s, err}
		}()
		q.Wait()
		q.Add([][]byte{stat(VIRTIO_BALLOON_S_MEMFREE, 100+i), stat(99, 5), stat(VIRTIO_BALLOON_S_MEMTOT, 1<<64-1), {1, 2}}, nil)
		q.Kick()
		if r := <-ch; r.error != nil || r.Free != int64(100+i) || r.Total != 1<<63-1 || r.Caches != -1 {
			t.Errorf("stats %+v", r)
		}
	}
	go func() {
		s, err := d.Stats(context.Background())
		ch <- result{s, err}
	}()
	q.Wait() // asked, never answered
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
	defer cancel()
	if _, err := d.Stats(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("timeout: %v", err)
	}
	m.Reset()
	if r := <-ch; r.error != ErrInactive {
		t.Errorf("reset: %v", r.error)
	}
	if _, err := d.Stats(ctx); err != ErrInactive {
		t.Errorf("inactive: %v", err)
	}
}

// §5.5.6.6: a run of hinting.
func TestHinting(t *testing.T) {
	d, m, hinted := machine(t)
	q := m.Queue[queueFreePage]
	if err := d.StartHinting(); err != nil {
		t.Fatal(err)
	}
	<-m.ConfigChanged()
	id := m.Config(8, 4)
	if binary.LittleEndian.Uint32(id) != 2 {
		t.Errorf("command %x", id)
	}
	q.Do(nil, []int{4096}) // before the run begins
	q.Do([][]byte{id}, nil)
	q.Do(nil, []int{8192})
	if h := <-hinted; h.n != 8192 {
		t.Errorf("hint %+v", h)
	}
	q.Do([][]byte{pfns(VIRTIO_BALLOON_CMD_ID_STOP)}, nil)
	q.Do(nil, []int{4096})
	d.StopHinting()
	<-m.ConfigChanged()
	if got := m.Config(8, 4); got[0] != VIRTIO_BALLOON_CMD_ID_DONE {
		t.Errorf("command %x", got)
	}
	q.Do([][]byte{id}, []int{4096}) // late
	if len(hinted) != 0 {
		t.Errorf("%d hints too many", len(hinted))
	}
}

// WaitHinting ends when the driver says STOP in its run, with the time, or with the driver.
func TestWaitHinting(t *testing.T) {
	d, m, hinted := machine(t)
	q := m.Queue[queueFreePage]
	if err := d.WaitHinting(context.Background()); err != ErrInactive {
		t.Errorf("without a run: %v", err)
	}
	stop := pfns(VIRTIO_BALLOON_CMD_ID_STOP)
	wait := func() chan error {
		t.Helper()
		if err := d.StartHinting(); err != nil {
			t.Fatal(err)
		}
		ch := make(chan error)
		go func() { ch <- d.WaitHinting(context.Background()) }()
		return ch
	}
	ch := wait()
	old := m.Config(8, 4)
	q.Do([][]byte{stop}, nil)     // a STOP without a begin
	q.Do([][]byte{pfns(99)}, nil) // of no run
	q.Do([][]byte{stop}, nil)
	q.Do([][]byte{old}, nil)
	q.Do(nil, []int{4096})
	select {
	case err := <-ch:
		t.Errorf("the wait ended before the run: %v", err)
	case <-time.After(10 * time.Millisecond):
	}
	q.Do([][]byte{stop}, nil)
	if err := <-ch; err != nil || len(hinted) != 1 {
		t.Errorf("told: %v, %d hints", err, len(hinted))
	}
	d.StopHinting()
	ch = wait()
	q.Do([][]byte{old}, []int{4096})
	q.Do([][]byte{stop}, nil) // of the run before
	if len(hinted) != 1 {
		t.Errorf("%d hints of an old run", len(hinted)-1)
	}
	d.StopHinting()
	if err := <-ch; err != ErrInactive {
		t.Errorf("ended by the host: %v", err)
	}
	if err := d.StartHinting(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
	defer cancel()
	if err := d.WaitHinting(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a driver that never says STOP: %v", err)
	}
	ch = wait()
	m.Reset()
	if err := <-ch; err != ErrInactive {
		t.Errorf("reset: %v", err)
	}
}

// A hint read late: the driver took the page back and wrote there, so it stays; what nobody
// wrote goes (§5.5.6.5.2). The hint itself lends the device nothing.
func TestHintedAndWritten(t *testing.T) {
	m := virtqtest.NewMemory(t, 16<<20)
	var w *mem.Record
	d := New(Config{Memory: m.Memory, Hint: func(gpa mem.GPA, n uint64) { w.Free(gpa, n) }})
	vm := virtiotest.New(t, d, virtiotest.Options{Memory: m, Skip: []int{2, 4}})
	q := vm.Queue[queueFreePage]
	const base = 8 << 20
	b := m.Bytes(base, 16<<12)
	for i := range b {
		b[i] = 7
	}
	var err error
	if w, err = m.Record(); errors.Is(err, mem.ErrNoRecord) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := d.StartHinting(); err != nil {
		t.Fatal(err)
	}
	b[0] = 7 // before the hint, but since the run began
	q.Do([][]byte{vm.Config(8, 4)}, nil)
	hint := func(gpa mem.GPA, n uint32) {
		q.AddAt(virtqtest.Desc{Addr: gpa, Len: n, Flags: virtqtest.DescWrite})
		q.Kick()
		q.Wait()
	}
	hint(base, 4<<12)
	b[1<<12] = 8               // behind the hint
	hint(base+2<<12, 8<<12)    // overlaps
	hint(base+12<<12+1, 2<<12) // one whole page
	q.Do([][]byte{pfns(VIRTIO_BALLOON_CMD_ID_STOP)}, nil)
	waited, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := d.WaitHinting(waited); err != nil {
		t.Fatal(err)
	}
	n, more, err := w.Discard(1 << 30)
	if n != 9<<12 || more || err != nil {
		t.Errorf("%d pages, more %v, %v", n>>12, more, err)
	}
	for i := range 16 {
		want := i >= 2 && i < 10 || i == 13
		if gone := b[i<<12] == 0 && b[i<<12+4095] == 0; gone != want {
			t.Errorf("page %d went: %v", i, gone)
		}
	}
}

// §5.5.6.6: with PAGE_POISON a page holds poison_val when it is taken again.
func TestHintingPoison(t *testing.T) {
	for _, c := range []struct {
		features virtio.Features
		poison   uint32
		err      error
	}{
		{virtio.Bits(VIRTIO_BALLOON_F_FREE_PAGE_HINT, VIRTIO_BALLOON_F_PAGE_POISON), 0, nil},
		{virtio.Bits(VIRTIO_BALLOON_F_FREE_PAGE_HINT, VIRTIO_BALLOON_F_PAGE_POISON), 0xaaaaaaaa, ErrPoison},
		{virtio.Bits(VIRTIO_BALLOON_F_FREE_PAGE_HINT), 0xaaaaaaaa, nil},
	} {
		m := virtqtest.NewMemory(t, 16<<20)
		d := New(Config{Memory: m.Memory, Hint: func(mem.GPA, uint64) {}})
		d.WriteConfig(12, pfns(c.poison))
		virtiotest.New(t, d, virtiotest.Options{Memory: m, Features: c.features, Skip: []int{2, 4}})
		if err := d.StartHinting(); err != c.err {
			t.Errorf("features %#x, poison_val %#x: %v", c.features, c.poison, err)
		}
	}
}

// §5.5.6.5.2: a command ID is not used again, nor is one that means something else,
// and a driver's reset ends a run.
func TestCommandIDs(t *testing.T) {
	d, m, hinted := machine(t)
	ids := map[uint32]bool{}
	start := func() []byte {
		t.Helper()
		if err := d.StartHinting(); err != nil {
			t.Fatal(err)
		}
		id := m.Config(8, 4)
		if n := binary.LittleEndian.Uint32(id); n < 2 || ids[n] {
			t.Errorf("command ID %d again", n)
		}
		ids[binary.LittleEndian.Uint32(id)] = true
		return id
	}
	start()
	d.mu.Lock()
	d.runID = 1<<32 - 2
	d.mu.Unlock()
	start()
	delete(ids, 2)
	id := start() // behind the last one
	m.Reset()
	if got := m.Config(8, 4); !bytes.Equal(got, pfns(VIRTIO_BALLOON_CMD_ID_STOP)) {
		t.Errorf("command % x after a reset", got)
	}
	if err := d.StartHinting(); err != ErrInactive {
		t.Errorf("without a driver: %v", err)
	}
	if err := m.Activate(); err != nil {
		t.Fatal(err)
	}
	m.Queue[queueFreePage].Do([][]byte{id}, nil) // of before the reset
	m.Queue[queueFreePage].Do(nil, []int{4096})
	if len(hinted) != 0 {
		t.Errorf("%d hints of a run that has ended", len(hinted))
	}
}

// Queues are found by §5.5.2's numbers, and by Linux's without gaps.
func TestArrange(t *testing.T) {
	for _, skip := range [][]int{{2, 3}, {3, 4}} {
		m := virtqtest.NewMemory(t, 16<<20)
		d := New(Config{Memory: m.Memory, Reporting: true})
		vm := virtiotest.New(t, d, virtiotest.Options{Memory: m, Skip: skip})
		q := vm.Queue[2]
		if q == nil {
			q = vm.Queue[4]
		}
		if u := q.Do(nil, []int{4096}); u.In[0][0] != 0 {
			t.Errorf("skip %v: page not dropped", skip)
		}
		if _, err := d.Stats(context.Background()); err != ErrUnsupported {
			t.Error(err)
		}
		if err := d.StartHinting(); err != ErrUnsupported {
			t.Error(err)
		}
	}
}

func TestAllocs(t *testing.T) {
	_, m, _ := machine(t)
	gpa := m.Mem.Alloc(4096)
	copy(m.Mem.Bytes(gpa, 4096), pfns(3000, 3002, 3004, 3006))
	inflate := m.Queue[queueInflate].Again(virtqtest.Desc{Addr: gpa, Len: 16})
	report := m.Queue[queueReporting].Again(virtqtest.Desc{Addr: 12 << 20, Len: 8192, Flags: virtqtest.DescWrite})
	if n := testing.AllocsPerRun(300, func() { inflate(); report() }); n != 0 {
		t.Errorf("%v allocations per request", n)
	}
}

func FuzzQueues(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8}, uint16(100))
	f.Fuzz(func(t *testing.T, out []byte, in uint16) {
		d, m, _ := machine(t, func(c *Config) { c.Hint = func(mem.GPA, uint64) {} })
		_ = d.StartHinting()
		var bufs [][]byte
		var lens []int
		if len(out) > 0 {
			bufs = append(bufs, out)
		}
		if in > 0 {
			lens = append(lens, int(in))
		}
		if len(bufs)+len(lens) == 0 {
			return
		}
		for i, q := range m.Queue {
			if i != queueStats {
				// Inflating what the rings themselves are made of is the guest's loss.
				if i == queueInflate && len(out) >= 4 {
					continue
				}
				q.Do(bufs, lens)
			}
		}
		m.Queue[queueStats].Add(bufs, lens)
		m.Queue[queueStats].Kick()
		m.Queue[queueInflate].Add(bufs, lens)
		m.Queue[queueInflate].Kick()
		m.Reset()
	})
}
