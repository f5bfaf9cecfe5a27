package mem_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// record begins a record, where the host can.
func record(t testing.TB, m *mem.Memory) *mem.Record {
	t.Helper()
	w, err := m.Record()
	if errors.Is(err, mem.ErrNoRecord) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	return w
}

// fill writes what no dropped page holds.
func fill(b []byte) {
	for i := range b {
		b[i] = 7
	}
}

// dropped are the pages of b that are zeros.
func dropped(b []byte) (pages []int) {
	for i := 0; i < len(b); i += page {
		if bytes.Equal(b[i:i+page], make([]byte, page)) {
			pages = append(pages, i/page)
		}
	}
	return pages
}

// TestRecord: of the pages that are said to be free those go that are zeros or that nobody wrote since the record
// began, whoever it was: a CPU (a plain store), a system call of the host, a device of
// ours that was given the page and writes only later.
func TestRecord(t *testing.T) {
	m := pc(t)
	b := m.Find(0).Bytes()
	high := m.Find(1 << 32).Bytes()
	fill(b)
	fill(high)
	w := record(t, m)
	if _, err := m.Record(); err == nil {
		t.Error("two records at once")
	}
	zero, err := os.Open("/dev/zero")
	if err != nil {
		t.Fatal(err)
	}
	defer zero.Close()
	b[1*page] = 8
	clear(b[6*page : 8*page]) // a guest that clears what it takes
	clear(b[9*page : 10*page-1])
	if _, err := zero.Read(b[2*page : 2*page+100]); err != nil {
		t.Fatal(err)
	}
	lent, err := m.DMA(3*page+100, page) // to the fourth page
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Address(5*page, page); err != nil {
		t.Error(err)
	}
	if m.Discard(13*page, page) != nil {
		t.Error("reporting fails")
	}
	b[13*page] = 9
	w.Free(page-1, 10*page+2) // whole pages only: 1 to 10
	w.Free(13*page, page)
	w.Free(15*page, page)
	w.Free(15*page, page)
	w.Free(1<<32, 2*page)
	// A hostile guest's.
	for _, r := range []struct {
		gpa mem.GPA
		n   uint64
	}{{0, 1 << 63}, {16 * page, page}, {15 * page, 2 * page}, {1<<64 - page, 2 * page}, {1<<64 - 1, 1<<64 - 1}, {0xffff_0000, page}, {0x10_0000_0000, page}, {0, 0}, {11*page + 1, 2*page - 2}} {
		w.Free(r.gpa, r.n)
	}
	n, more, err := w.Discard(4 * page)
	if n == 0 || n > 4*page || !more || err != nil {
		t.Errorf("first step: %d bytes, more %v, %v", n, more, err)
	}
	for more {
		var k uint64
		if k, more, err = w.Discard(4 * page); err != nil {
			t.Fatal(err)
		}
		n += k
	}
	if got := dropped(b); !equal(got, 5, 6, 7, 8, 10, 15) {
		t.Errorf("dropped %v", got)
	}
	if got := dropped(high); !equal(got, 0, 1) {
		t.Errorf("dropped in high memory %v", got)
	}
	if n != 8*page || b[13*page] != 9 {
		t.Errorf("%d pages went", n/page)
	}
	lent[page-101] = 8 // the device gets round to it
	w.Free(0, 16*page)
	if n, _, err := w.Discard(1 << 30); n != 0 || err != nil {
		t.Errorf("pages behind the look: %d, %v", n, err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	// A second record knows nothing of the first.
	w = record(t, m)
	w.Free(0, 16*page)
	if n, _, err := w.Discard(1 << 30); err != nil || n == 0 || len(dropped(b)) != 16 {
		t.Errorf("second record: %d bytes, %v, dropped %v", n, err, dropped(b))
	}
}

func equal(got []int, want ...int) bool {
	ok := len(got) == len(want)
	for i := range want {
		ok = ok && got[i] == want[i]
	}
	return ok
}

// TestRecordPluggable: memory that is not plugged is nobody's.
func TestRecordPluggable(t *testing.T) {
	m := mem.New()
	t.Cleanup(func() { _ = m.Close() })
	r, err := m.Add("slots", 1<<32, 2*mem.BlockSize, mem.Pluggable)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.SetPlugged(0, mem.BlockSize, true); err != nil {
		t.Fatal(err)
	}
	fill(r.Bytes()) // a CPU reaches the second block, too
	w := record(t, m)
	w.Free(1<<32, 2*mem.BlockSize)
	if n, _, err := w.Discard(1 << 40); n != 0 || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	w.Free(1<<32, mem.BlockSize)
	w.Free(1<<32+mem.BlockSize, mem.BlockSize)
	r.Bytes()[mem.BlockSize/2] = 8 // within a huge page: only its 4 KiB stay
	if n, _, err := w.Discard(1 << 40); n != 0 || err != nil {
		t.Errorf("behind the look: %d bytes, %v", n, err)
	}
	_ = w.Close()
	w = record(t, m)
	w.Free(1<<32, mem.BlockSize)
	r.Bytes()[mem.BlockSize/2] = 8
	if n, _, err := w.Discard(1 << 40); n != mem.BlockSize-page || err != nil || r.Bytes()[mem.BlockSize] != 7 {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// TestRecordOthers: who serves queues elsewhere says what it may write, or nothing goes.
func TestRecordOthers(t *testing.T) {
	m := pc(t)
	var err error
	m.OnRecord(func() error {
		_, _ = m.DMA(page, page)
		return err
	})
	b := m.Find(0).Bytes()
	fill(b)
	w := record(t, m)
	w.Free(0, 3*page)
	err = errors.New("broken")
	if n, more, got := w.Discard(1 << 30); n != 0 || more || got != err || len(dropped(b)) != 0 {
		t.Errorf("%d bytes, %v, %v", n, more, got)
	}
	err = nil
	if n, _, got := w.Discard(1 << 30); n != 2*page || got != nil || b[page] != 7 {
		t.Errorf("%d bytes, %v", n, got)
	}
}

// TestRecordRace: devices that are given pages while others are dropped lose nothing that they
// write, however late.
func TestRecordRace(t *testing.T) {
	const pages = 256
	m := mem.New()
	t.Cleanup(func() { _ = m.Close() })
	if _, err := m.Add("RAM", 0, pages*page, mem.RAM); err != nil {
		t.Fatal(err)
	}
	b := m.Find(0).Bytes()
	for round := range 30 {
		fill(b)
		w := record(t, m)
		w.Free(0, pages*page)
		var wg sync.WaitGroup
		const devices = 3
		for d := range devices {
			wg.Go(func() {
				random := rand.New(rand.NewPCG(uint64(round), uint64(d)))
				for i := range pages / devices {
					p := i*devices + d
					s, err := m.DMA(mem.GPA(p*page), page)
					if err != nil {
						t.Error(err)
						return
					}
					for range random.IntN(2000) {
						_ = load(s) // the data is not there yet
					}
					s[5] = byte(d + 1)
				}
			})
		}
		for more := true; more; {
			var err error
			if _, more, err = w.Discard(page); err != nil {
				t.Fatal(err)
			}
		}
		wg.Wait()
		for p := range pages / devices * devices {
			if b[p*page+5] != byte(p%devices+1) {
				t.Fatalf("round %d: what device %d wrote to page %d is lost", round, p%devices, p)
			}
		}
		_ = w.Close()
	}
}

//go:noinline
func load(b []byte) byte { return b[0] }

// TestRecordAllocs: a device's requests allocate nothing while there is a record.
func TestRecordAllocs(t *testing.T) {
	m := pc(t)
	record(t, m)
	if n := testing.AllocsPerRun(100, func() {
		_, _ = m.Slice(page, 3*page)
		_, _ = m.DMA(1<<32, page)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzRecord: whatever the guest says to be free, nothing goes that was written.
func FuzzRecord(f *testing.F) {
	f.Add(uint64(0), uint64(16*page), uint16(0x5555))
	f.Add(uint64(page), uint64(1)<<63, uint16(1))
	f.Fuzz(func(t *testing.T, gpa, n uint64, written uint16) {
		m := pc(t)
		b := m.Find(0).Bytes()
		fill(b)
		w := record(t, m)
		w.Free(mem.GPA(gpa), n)
		for i := range 16 {
			if written>>i&1 != 0 {
				b[i*page+1] = 8
			}
		}
		if _, _, err := w.Discard(1 << 40); err != nil {
			t.Fatal(err)
		}
		for i := range 16 {
			p := uint64(i * page)
			inside := gpa <= p && p+page <= gpa+n && gpa+n <= 16*page && gpa+n >= gpa
			if gone := b[p] == 0; gone != (inside && written>>i&1 == 0) {
				t.Errorf("page %d went: %v", i, gone)
			}
		}
	})
}
