package pmem

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/virtiotest"
	"github.com/gvmspawn/gvmspawn/virtio/virtq/virtqtest"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

var (
	_ virtio.Device = (*Device)(nil)
	_ Window        = (*mem.Region)(nil)
)

const (
	addr = 1 << 36
	size = 5<<20 + 512 // not a multiple of anything
)

// machine is a device over a file of its own, with 0x55 in its first MiB and just below
// 2 MiB, and holes elsewhere.
func machine(t testing.TB, private bool) (*Device, *virtiotest.Machine, *mem.Region, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, bytes.Repeat([]byte{0x55}, 1<<20+4096), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		_, err = f.WriteAt([]byte{0x55}, 2<<20-1)
	}
	if err == nil {
		err = f.Truncate(size)
	}
	if err != nil {
		t.Fatal(err)
	}
	n, err := WindowSize(f)
	if err != nil || n != 6<<20 {
		t.Fatalf("window of %d bytes, %v", n, err)
	}
	m := mem.New()
	t.Cleanup(func() { _ = m.Close() })
	r, err := m.Add("pmem", addr, n, mem.Window)
	if err != nil {
		t.Fatal(err)
	}
	d, err := New(Config{File: f, Private: private, Window: r, Addr: addr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return d, virtiotest.New(t, d, virtiotest.Options{}), r, path
}

var flushRequest = make([]byte, reqSize)

// flush asks for a flush and returns ret.
func flush(q *virtqtest.Driver) uint32 {
	return binary.LittleEndian.Uint32(q.Do([][]byte{flushRequest}, []int{respSize}).In[0])
}

// setSync replaces fdatasync(2).
func setSync(d *Device, f func(int) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sync = f
}

// read reads a byte as the software CPU does.
func read(r *mem.Region, off uint64) byte { return r.Bytes()[off] }

// §5.19.4.
func TestConfig(t *testing.T) {
	d, m, _, _ := machine(t, false)
	d.WriteConfig(0, []byte{1, 2, 3, 4, 5, 6, 7, 8})
	want := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, addr), 6<<20)
	if got := m.Config(0, 20); !bytes.Equal(got, append(want, 0, 0, 0, 0)) {
		t.Errorf("config %x", got)
	}
}

// §5.19.6: the guest's writes are the file's, and a flush succeeds; behind the
// file there are zeros.
func TestFlush(t *testing.T) {
	_, m, r, path := machine(t, false)
	copy(r.Bytes()[4096:], "written by the guest")
	for _, off := range []uint64{5<<20 + 512, 6<<20 - 1} {
		if b := read(r, off); b != 0 {
			t.Errorf("behind the file, at %#x: %#x", off, b)
		}
	}
	if ret := flush(m.Queue[0]); ret != retSuccess {
		t.Errorf("flush returns %d", ret)
	}
	if b, err := os.ReadFile(path); err != nil || len(b) != size || !bytes.HasPrefix(b[4096:], []byte("written by the guest")) || b[0] != 0x55 {
		t.Errorf("file of %d bytes, %v", len(b), err)
	}
}

// A read-only or ephemeral image: the guest may write, the file stays.
func TestPrivate(t *testing.T) {
	_, m, r, path := machine(t, true)
	r.Bytes()[0] = 1
	if ret := flush(m.Queue[0]); ret != retSuccess {
		t.Errorf("flush returns %d", ret)
	}
	if b, err := os.ReadFile(path); err != nil || b[0] != 0x55 {
		t.Errorf("the file has %#x, %v", b[0], err)
	}
}

// A host that cannot write: the guest hears of it.
func TestFlushFails(t *testing.T) {
	d, m, _, _ := machine(t, false)
	setSync(d, func(int) error { return errors.New("no space") })
	if ret := flush(m.Queue[0]); ret != retFailure {
		t.Errorf("flush returns %d", ret)
	}
}

// A file truncated under its mapping: what is lost reads as zeros, whether a CPU in
// this process touches it first or KVM's does, and flushes fail.
func TestTruncate(t *testing.T) {
	for name, repair := range map[string]func(*Device, *mem.Region, uint64) bool{
		"address known":   func(d *Device, _ *mem.Region, off uint64) bool { return d.Repair(off) == nil },
		"address unknown": func(d *Device, _ *mem.Region, _ uint64) bool { return d.RepairShrunk() },
		"in this process": func(_ *Device, r *mem.Region, off uint64) bool { return read(r, off) == 0 },
	} {
		t.Run(name, func(t *testing.T) {
			d, m, r, path := machine(t, false)
			if d.RepairShrunk() {
				t.Error("an intact file was repaired")
			}
			if err := os.Truncate(path, 1<<20+100); err != nil {
				t.Fatal(err)
			}
			if ret := flush(m.Queue[0]); ret != retFailure {
				t.Errorf("flush of a shorter file returns %d", ret)
			}
			if !repair(d, r, 3<<20) {
				t.Fatal("not repaired")
			}
			for _, o := range []uint64{3 << 20, 1<<20 + 4096, 5 << 20} {
				if b := read(r, o); b != 0 {
					t.Errorf("at %#x: %#x", o, b)
				}
			}
			if b := read(r, 1<<20+99); b != 0x55 {
				t.Errorf("what is left of the file: %#x", b)
			}
			if ret := flush(m.Queue[0]); ret != retFailure {
				t.Errorf("flush returns %d", ret)
			}
			if err := os.Truncate(path, 0); err != nil {
				t.Fatal(err)
			}
			if !repair(d, r, 4096) {
				t.Error("not repaired again")
			}
			if b := read(r, 4096); b != 0 {
				t.Errorf("after all is gone: %#x", b)
			}
			if err := os.Truncate(path, size); err != nil {
				t.Fatal(err)
			}
			if ret := flush(m.Queue[0]); ret != retFailure {
				t.Errorf("flush after a loss returns %d", ret)
			}
		})
	}
	d, _, r, _ := machine(t, false)
	if err := d.Repair(6 << 20); err == nil {
		t.Error("repaired outside the window")
	}
	if err := d.Repair(2<<20 + 5); err != nil { // the host cannot read a page
		t.Error(err)
	}
	if b := read(r, 2<<20+5); b != 0 {
		t.Errorf("%#x", b)
	}
	if b := read(r, 2<<20-1); b != 0x55 {
		t.Errorf("the neighbour has %#x", b)
	}
}

// Row 25: a flood of flushes costs one flush of the file after another, and
// requests of other types, or too short, or without room for an answer, cost none.
func TestFlood(t *testing.T) {
	d, m, _, _ := machine(t, false)
	var calls atomic.Int64
	gate := make(chan struct{})
	entered := make(chan struct{}, 2*queueSize)
	setSync(d, func(int) error {
		calls.Add(1)
		entered <- struct{}{}
		<-gate
		return nil
	})
	q := m.Queue[0]
	q.Add([][]byte{flushRequest}, []int{respSize})
	q.Kick()
	<-entered // what comes now waits for the next flush
	for range queueSize/2 - 1 {
		q.Add([][]byte{flushRequest}, []int{respSize})
	}
	q.Kick()
	close(gate)
	for range queueSize / 2 {
		if u := q.Wait(); binary.LittleEndian.Uint32(u.In[0]) != retSuccess {
			t.Errorf("answer %x", u.In[0])
		}
	}
	if n := calls.Load(); n > 2 {
		t.Errorf("%d flushes for %d requests", n, queueSize/2)
	}
	before := calls.Load()
	if u := q.Do([][]byte{{1, 0, 0, 0}}, []int{respSize}); binary.LittleEndian.Uint32(u.In[0]) != retFailure {
		t.Errorf("unknown type: %x", u.In[0])
	}
	if u := q.Do([][]byte{{0, 0}}, []int{2}); u.Written != 2 || u.In[0][0] != retFailure {
		t.Errorf("short: %+v", u)
	}
	if n := calls.Load() - before; n != 0 {
		t.Errorf("%d flushes", n)
	}
	if u := q.Do([][]byte{flushRequest}, nil); u.Written != 0 {
		t.Errorf("no room: %+v", u)
	}
}

func TestErrors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := WindowSize(f); err == nil || !strings.Contains(err.Error(), "is empty") {
		t.Error(err)
	}
	m := mem.New()
	t.Cleanup(func() { _ = m.Close() })
	r, err := m.Add("pmem", addr, 2<<20, mem.Window)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{File: f, Window: r, Addr: addr}); err == nil {
		t.Error("an empty file is mapped")
	}
}

func TestAllocs(t *testing.T) {
	d, m, _, _ := machine(t, false)
	setSync(d, func(int) error { return nil })
	gpa := m.Mem.Alloc(64)
	again := m.Queue[0].Again(virtqtest.Desc{Addr: gpa, Len: reqSize}, virtqtest.Desc{Addr: gpa + 8, Len: respSize, Flags: virtqtest.DescWrite})
	if n := testing.AllocsPerRun(300, again); n != 0 {
		t.Errorf("%v allocations per request", n)
	}
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0}, uint16(4))
	f.Add([]byte{1}, uint16(0))
	f.Fuzz(func(t *testing.T, req []byte, room uint16) {
		_, m, _, _ := machine(t, false)
		if len(req) == 0 {
			return
		}
		var lens []int
		if room > 0 {
			lens = append(lens, int(room))
		}
		m.Queue[0].Do([][]byte{req}, lens)
	})
}
