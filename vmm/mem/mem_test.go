package mem_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

const page = 4096

// pc is a small machine: RAM with a hole, ROM, and a window.
func pc(t testing.TB) *mem.Memory {
	t.Helper()
	m := mem.New()
	t.Cleanup(func() { _ = m.Close() })
	for _, r := range []struct {
		name string
		base mem.GPA
		size uint64
		kind mem.Kind
	}{
		{"high", 0x1_0000_0000, 16 * page, mem.RAM}, {"low", 0, 16 * page, mem.RAM},
		{"firmware", 0xffff_0000, 16 * page, mem.ROM}, {"dax", 0x10_0000_0000, 16 * page, mem.Window},
	} {
		if _, err := m.Add(r.name, r.base, r.size, r.kind); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func TestRegions(t *testing.T) {
	m := pc(t)
	var names []string
	for _, r := range m.Regions() {
		names = append(names, r.Name)
	}
	if got := strings.Join(names, " "); got != "low firmware high dax" {
		t.Errorf("regions %q, not by address", got)
	}
	if m.RAMSize() != 32*page || m.RAMEnd() != 0x1_0001_0000 {
		t.Errorf("RAM %#x, end %#x", m.RAMSize(), m.RAMEnd())
	}
	for gpa, want := range map[mem.GPA]string{0: "low", 16*page - 1: "low", 0xffff_0000: "firmware", 0xffff_ffff: "firmware", 0x1_0000_0000: "high", 0x10_0000_0000: "dax"} {
		if r := m.Find(gpa); r == nil || r.Name != want {
			t.Errorf("%#x is in %v, not %s", gpa, r, want)
		}
	}
	for _, gpa := range []mem.GPA{16 * page, 0xfffe_ffff, 0x1_0001_0000, 1<<64 - 1} {
		if r := m.Find(gpa); r != nil {
			t.Errorf("%#x is in %s", gpa, r.Name)
		}
	}
}

func TestAddErrors(t *testing.T) {
	m := pc(t)
	for _, c := range []struct {
		base mem.GPA
		size uint64
		want string
	}{
		{0x100000, 0, "bad range"}, {0x100001, page, "bad range"}, {0x100000, page + 1, "bad range"},
		{1 << 53, page, "bad range"}, {0x100000, 1 << 53, "bad range"},
		{0, page, "overlaps low"}, {15 * page, 2 * page, "overlaps low"},
		{0xfffe_0000, 0x2_0000, "overlaps firmware"}, {0xf_ffff_f000, 2 * page, "overlaps dax"},
	} {
		_, err := m.Add("new", c.base, c.size, mem.RAM)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%#x+%#x: %v, want %q", c.base, c.size, err, c.want)
		}
	}
	if _, err := m.Add("between", 16*page, page, mem.RAM); err != nil {
		t.Error(err)
	}
}

// Only whole ranges inside one RAM region are given out; nothing wraps.
func TestSlice(t *testing.T) {
	m := pc(t)
	for _, c := range []struct {
		gpa mem.GPA
		n   uint64
		ok  bool
	}{
		{0, 16 * page, true}, {0, 16*page + 1, false}, {16 * page, 0, true}, {16 * page, 1, false}, {16*page + 1, 0, false},
		{16*page - 1, 1, true}, {16*page - 1, 2, false}, {8, ^uint64(0), false}, {8, ^uint64(0) - 7, false},
		{1<<64 - 1, 1, false}, {1<<64 - 8, 16, false}, {1<<64 - 8, 8, false},
		{0xffff_0000, 1, false}, {0xffff_fff0, 32, false}, // ROM, ROM into RAM
		{0x1_0000_0000 - 8, 16, false}, {0x1_0000_0000, 8, true}, {0x10_0000_0000, 8, false},
	} {
		b, err := m.Slice(c.gpa, c.n)
		if (err == nil) != c.ok || (err != nil && !errors.Is(err, mem.ErrOutOfRange)) {
			t.Errorf("Slice(%#x, %#x): %v", c.gpa, c.n, err)
		}
		if err == nil && (uint64(len(b)) != c.n || uint64(cap(b)) != c.n) {
			t.Errorf("Slice(%#x, %#x): length %d, capacity %d", c.gpa, c.n, len(b), cap(b))
		}
	}
}

func TestReadWrite(t *testing.T) {
	m := pc(t)
	want := []byte("at the end of RAM")
	at := mem.GPA(16*page - len(want))
	if err := m.WriteAt(want, at); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if err := m.ReadAt(got, at); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
	if !errors.Is(m.WriteAt(want, at+1), mem.ErrOutOfRange) || !errors.Is(m.ReadAt(got, at+1), mem.ErrOutOfRange) {
		t.Error("an access across the end was done")
	}
}

func TestOrdered(t *testing.T) {
	m := pc(t)
	if _, err := m.OrderedSlice(1, 2); !errors.Is(err, mem.ErrOutOfRange) {
		t.Errorf("odd address: %v", err)
	}
	o, err := m.OrderedSlice(2, 6)
	if err != nil {
		t.Fatal(err)
	}
	o.StoreUint16(4, 0x1234)
	mem.Fence()
	if o.LoadUint16(4) != 0x1234 || o[4] != 0x34 || o[5] != 0x12 {
		t.Errorf("% x", []byte(o))
	}
	for _, off := range []uint64{5, 6, 1 << 40, ^uint64(0)} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("an access at %#x of 6 bytes", off)
				}
			}()
			o.LoadUint16(off)
		}()
	}
}

// Message passing between two goroutines: data before the index, as in a ring.
func TestOrderedPublish(t *testing.T) {
	m := pc(t)
	o, _ := m.OrderedSlice(0, page)
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := uint16(1); i < 20000; i++ {
			o.StoreUint16(64, i)
			o.StoreUint16(0, i)
		}
	})
	for last := uint16(0); last < 19999; {
		i := o.LoadUint16(0)
		if d := o.LoadUint16(64); int16(d-i) < 0 {
			t.Fatalf("index %d came before its data, %d", i, d)
		}
		last = i
	}
	wg.Wait()
}

func dirty(m *mem.Memory) map[mem.GPA]bool {
	d := make(map[mem.GPA]bool)
	m.TakeDirty(func(p mem.GPA) { d[p] = true })
	return d
}

func TestDirtyLog(t *testing.T) {
	m := pc(t)
	b := []byte{1, 2}
	_ = m.WriteAt(b, 0)
	if len(dirty(m)) != 0 {
		t.Error("pages are dirty without a log")
	}
	m.SetDirtyLog(true)
	_ = m.WriteAt(b, page-1) // two pages
	_ = m.WriteAt(b, 0x1_0000_0000+15*page)
	m.MarkWritten(4*page, 2*page)
	m.MarkWritten(8*page, 0)
	m.MarkWritten(0xffff_0000, 1)     // ROM
	m.MarkWritten(15*page, 2*page)    // straddles
	m.MarkWritten(1<<64-1, 1)         // nowhere
	m.MarkWritten(0x10_0000_0000, 10) // window
	got := dirty(m)
	for _, p := range []mem.GPA{0, page, 4 * page, 5 * page, 0x1_0000_0000 + 15*page} {
		if !got[p] {
			t.Errorf("%#x is not dirty", p)
		}
	}
	if len(got) != 5 || len(dirty(m)) != 0 {
		t.Errorf("dirty pages %v", got)
	}
	m.SetDirtyLog(false)
	_ = m.WriteAt(b, 0)
	m.SetDirtyLog(true)
	if len(dirty(m)) != 0 {
		t.Error("a new log starts with dirty pages")
	}
}

func TestWatch(t *testing.T) {
	m := pc(t)
	var hits []mem.GPA
	m.OnWatchedWrite(func(gpa mem.GPA, _ uint64) { hits = append(hits, gpa) })
	m.SetWatched(3*page, true)
	m.SetWatched(0x1_0000_0000, true)
	m.SetWatched(1<<40, true) // nowhere
	b := make([]byte, 16)
	_ = m.WriteAt(b, 2*page)
	_ = m.WriteAt(b, 3*page-8) // into the page
	_ = m.WriteAt(b, 0x1_0000_0000)
	m.SetWatched(3*page, false)
	_ = m.WriteAt(b, 3*page)
	if len(hits) != 2 || hits[0] != 3*page-8 || hits[1] != 0x1_0000_0000 {
		t.Errorf("hits %#x", hits)
	}
}

func TestDiscard(t *testing.T) {
	m := pc(t)
	m.SetDirtyLog(true)
	ram, _ := m.Slice(0, 16*page)
	for i := range ram {
		ram[i] = 1
	}
	for _, c := range []struct{ gpa, n, lo, hi uint64 }{
		{page, 2 * page, page, 3 * page},
		{5*page + 1, 2 * page, 6 * page, 7 * page}, // whole pages only
		{8*page + 1, page, 0, 0}, {9*page + 1, 10, 0, 0}, {10 * page, 0, 0, 0}, {10 * page, page - 1, 0, 0},
	} {
		if err := m.Discard(mem.GPA(c.gpa), c.n); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
		log := dirty(m)
		for p := c.gpa &^ (page - 1); p < c.gpa+c.n; p += page {
			if want := p >= c.lo && p < c.hi; (ram[p] == 0) != want || log[mem.GPA(p)] != want {
				t.Errorf("%+v: page %#x discarded %v, dirty %v", c, p, ram[p] == 0, log[mem.GPA(p)])
			}
		}
	}
	for _, c := range []struct{ gpa, n uint64 }{{15 * page, 2 * page}, {0xffff_0000, page}, {0x10_0000_0000, page}, {1<<64 - page, page}, {0, 1<<64 - 1}} {
		if err := m.Discard(mem.GPA(c.gpa), c.n); !errors.Is(err, mem.ErrOutOfRange) {
			t.Errorf("Discard(%#x, %#x): %v", c.gpa, c.n, err)
		}
	}
}

// A window shows files and only files.
func TestWindow(t *testing.T) {
	m := pc(t)
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, bytes.Repeat([]byte{7}, 2*page), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, fd := m.Find(0x10_0000_0000), int(f.Fd())
	if err := w.MapFile(4*page, fd, page, page, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		t.Fatal(err)
	}
	if w.Bytes()[4*page] != 7 {
		t.Error("the file is not there")
	}
	w.Bytes()[4*page+1] = 9
	if got, _ := os.ReadFile(path); got[page+1] != 9 {
		t.Error("a write did not reach the file")
	}
	if err := w.UnmapFile(4*page, page); err != nil {
		t.Error(err)
	}
	for _, c := range []struct{ at, n uint64 }{
		{0, 0}, {1, page}, {0, page + 1}, {16 * page, page}, {15 * page, 2 * page}, {1<<64 - page, page}, {1<<64 - page, 2 * page}, {0, 1 << 63},
	} {
		if err := w.MapFile(c.at, fd, 0, c.n, unix.PROT_READ); err == nil {
			t.Errorf("MapFile(%#x, %#x) worked", c.at, c.n)
		}
		if err := w.UnmapFile(c.at, c.n); err == nil {
			t.Errorf("UnmapFile(%#x, %#x) worked", c.at, c.n)
		}
	}
	for _, r := range []*mem.Region{m.Find(0), m.Find(0xffff_0000)} {
		if r.MapFile(0, fd, 0, page, unix.PROT_READ) == nil || r.UnmapFile(0, page) == nil {
			t.Errorf("a file went into %s", r.Name)
		}
	}
	if err := w.MapFile(0, -1, 0, page, unix.PROT_READ); err == nil {
		t.Error("no file was mapped")
	}
}

// TestWindowFaults: what a window's file has not got reads as zeros, and takes
// writes, to Go code; the file's own pages stay.
func TestWindowFaults(t *testing.T) {
	m := pc(t)
	w := m.Find(0x10_0000_0000)
	fd, err := unix.MemfdCreate("window", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.Pwrite(fd, bytes.Repeat([]byte{7}, 2*page), 0); err != nil {
		t.Fatal(err)
	}
	if err := w.MapFile(0, fd, 0, 8*page, unix.PROT_READ); err != nil {
		t.Fatal(err)
	}
	b, err := m.DMA(w.Base+page, 2*page)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Slice(w.Base+page, 1); err == nil {
		t.Error("a window is RAM")
	}
	if b[0] != 7 || b[page] != 0 || w.Faults() != 1 {
		t.Errorf("read %d and %d with %d faults", b[0], b[page], w.Faults())
	}
	b[page] = 1 // lost, so it belongs to nobody
	b[0] = 2    // read-only
	if b[0] != 2 || b[1] != 0 || w.Bytes()[0] != 7 || w.Faults() != 2 {
		t.Errorf("read %d, %d and %d with %d faults", b[0], b[1], w.Bytes()[0], w.Faults())
	}
	w.Bytes()[15*page] = 3 // nothing is mapped there
	if err := w.MapFile(0, fd, 0, 8*page, unix.PROT_READ); err != nil || b[0] != 7 || w.Bytes()[15*page] != 3 {
		t.Errorf("after the next mapping: %d and %d, %v", b[0], w.Bytes()[15*page], err)
	}
	// Other faults are Go's.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if recover() == nil {
			t.Error("no fault beside the window")
		}
	}()
	none, err := unix.Mmap(-1, 0, page, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(none)
	none[0] = 1
}

// TestHugePages: KVM takes huge pages only for memory whose host address is the
// guest's within a huge page (KVM_SET_USER_MEMORY_REGION).
func TestHugePages(t *testing.T) {
	m := mem.New()
	defer m.Close()
	for _, r := range []struct {
		base mem.GPA
		size uint64
		kind mem.Kind
	}{{0, 64 << 20, mem.RAM}, {4<<30 + 3*page, 16<<20 + page, mem.RAM}, {8 << 30, 2 << 20, mem.Window}, {16 << 30, 8 << 20, mem.Pluggable}} {
		added, err := m.Add("memory", r.base, r.size, r.kind)
		if err != nil {
			t.Fatal(err)
		}
		if host := added.HostAddr(); (host^uintptr(r.base))%(2<<20) != 0 {
			t.Errorf("%v at %#x is at %#x of the host", r.kind, r.base, host)
		}
	}
}

func TestNoAllocations(t *testing.T) {
	m := pc(t)
	m.SetDirtyLog(true)
	var b [64]byte
	o, _ := m.OrderedSlice(0, page)
	if n := testing.AllocsPerRun(100, func() {
		_ = m.WriteAt(b[:], 0x1_0000_0000)
		_ = m.ReadAt(b[:], 100)
		_, _ = m.Slice(1<<50, 1)
		o.StoreUint16(0, o.LoadUint16(2))
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzSlice: whatever is asked for, what comes lies in RAM.
func FuzzSlice(f *testing.F) {
	m := pc(f)
	f.Add(uint64(0), uint64(1))
	f.Add(uint64(1<<64-1), uint64(2))
	f.Fuzz(func(t *testing.T, gpa, n uint64) {
		b, err := m.Slice(mem.GPA(gpa), n)
		inside := (gpa <= 16*page && n <= 16*page-gpa) || (gpa >= 1<<32 && gpa <= 1<<32+16*page && n <= 1<<32+16*page-gpa)
		if (err == nil) != inside || (err == nil && uint64(len(b)) != n) {
			t.Errorf("Slice(%#x, %#x): %d bytes, %v", gpa, n, len(b), err)
		}
	})
}

// Devices reach the plugged blocks of a Pluggable region, and those alone.
func TestPluggable(t *testing.T) {
	m := pc(t)
	const base, block = 0x2_0000_0000, mem.BlockSize
	r, err := m.Add("hotplug", base, 130*block, mem.Pluggable)
	if err != nil {
		t.Fatal(err)
	}
	reach := func(gpa mem.GPA, n uint64) bool {
		_, err := m.Slice(gpa, n)
		return err == nil
	}
	if reach(base, 1) || m.RAMEnd() >= base {
		t.Error("an unplugged block is RAM")
	}
	if err := r.SetPlugged(63*block, 2*block, true); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		off, n uint64
		want   bool
	}{{63 * block, 2 * block, true}, {64*block - 1, 2, true}, {63*block - 1, 2, false}, {65*block - 1, 1, true}, {65*block - 1, 2, false}, {65 * block, 1, false}, {130*block - 1, 2, false}} {
		if got := reach(base+mem.GPA(c.off), c.n); got != c.want {
			t.Errorf("%#x+%#x: %v", c.off, c.n, got)
		}
	}
	if !r.Plugged(64*block-1, 2) || r.Unplugged(62*block, 2*block) || !r.Unplugged(65*block, 65*block) {
		t.Error("blocks are told wrongly")
	}
	if err := m.WriteAt([]byte("data"), base+64*block); err != nil {
		t.Fatal(err)
	}
	if err := r.SetPlugged(64*block, block, false); err != nil {
		t.Fatal(err)
	}
	if err := m.Discard(base+64*block, 4096); !errors.Is(err, mem.ErrOutOfRange) {
		t.Errorf("discard of an unplugged block: %v", err)
	}
	if err := r.SetPlugged(64*block, block, true); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4)
	if err := m.ReadAt(b, base+64*block); err != nil || !bytes.Equal(b, make([]byte, 4)) {
		t.Errorf("after unplugging: %q, %v", b, err)
	}
	for _, c := range [][2]uint64{{1, block}, {0, block / 2}, {129 * block, 2 * block}, {1 << 63, block}, {^uint64(block - 1), 2 * block}} {
		if err := r.SetPlugged(c[0], c[1], true); !errors.Is(err, mem.ErrOutOfRange) {
			t.Errorf("%#x+%#x: %v", c[0], c[1], err)
		}
	}
	if err := m.Regions()[0].SetPlugged(0, block, true); err == nil {
		t.Error("plain RAM can be unplugged")
	}
}
