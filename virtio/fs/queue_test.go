package fs

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/virtio/virtiotest"
	"github.com/gvmspawn/gvmspawn/virtio/virtq/virtqtest"
)

// machine activates a device for a new directory and sends INIT.
func machine(t testing.TB, edit func(*Config), o virtiotest.Options) (*virtiotest.Machine, *Device, string) {
	dir := t.TempDir()
	cfg := Config{Tag: "test", Path: dir}
	if edit != nil {
		edit(&cfg)
	}
	d, err := New(cfg)
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	m := virtiotest.New(t, d, o)
	ask(m.Queue[1], opInit, 0, sizeOf[initOut](), raw(initIn{Major: 7, Minor: 41, Flags: ^uint32(0), Flags2: ^uint32(0)}))
	return m, d, dir
}

// message is a request as it lies in memory.
func message(op opcode, node, unique uint64, args ...[]byte) [][]byte {
	body := bytes.Join(args, nil)
	h := inHeader{Len: uint32(inHeaderSize + len(body)), Opcode: op, Unique: unique, NodeID: node, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
	return [][]byte{raw(h), body}
}

// ask sends a request with room for a payload of n bytes and returns the answer.
func ask(q *virtqtest.Driver, op opcode, node uint64, n int, args ...[]byte) ([]byte, unix.Errno) {
	return parse(q.Do(message(op, node, 1, args...), []int{outHeaderSize, max(n, 1)}))
}

func parse(u virtqtest.Used) ([]byte, unix.Errno) {
	b := bytes.Clone(u.Bytes())
	if len(b) < outHeaderSize {
		return nil, 0
	}
	return b[outHeaderSize:], unix.Errno(-view[outHeader](b).Error)
}

func TestQueues(t *testing.T) {
	for _, o := range []virtiotest.Options{{}, {EventIdx: true, Indirect: true}, {Packed: true}} {
		m, _, dir := machine(t, func(c *Config) { c.Queues = 2 }, o)
		data := bytes.Repeat([]byte("contents"), 20000)
		put(t, filepath.Join(dir, "f"), string(data))
		b, e := ask(m.Queue[2], opLookup, rootID, entryOutSize, str("f"))
		if e != 0 {
			t.Fatal(e)
		}
		node := view[entryOut](b).NodeID
		b, _ = ask(m.Queue[1], opOpen, node, 16, raw(openIn{}))
		in := raw(readIn{FH: view[openOut](b).FH, Offset: 8, Size: 100000})
		// A driver's buffers: header, then pages.
		sizes := []int{outHeaderSize}
		for left := 100000; left > 0; left -= 4096 {
			sizes = append(sizes, min(left, 4096))
		}
		b, e = parse(m.Queue[1].Do(message(opRead, node, 1, in), sizes))
		if e != 0 || !bytes.Equal(b, data[8:100008]) {
			t.Errorf("%+v: read %d bytes, %v", o, len(b), e)
		}
		// FORGET on hiprio has no answer.
		if u := m.Queue[0].Do(message(opForget, node, 3, raw(forgetIn{1})), nil); u.Written != 0 {
			t.Errorf("FORGET wrote %d bytes", u.Written)
		}
		if _, e := ask(m.Queue[2], opGetattr, node, sizeOf[attrOut](), raw(getattrIn{})); e != unix.ESTALE {
			t.Errorf("forgotten: %v", e)
		}
		// Chains without a header, or nothing to answer in.
		m.Queue[1].Do([][]byte{{1, 2, 3}}, []int{100})
		m.Queue[1].Do(nil, []int{100})
		m.Queue[1].Do(message(opGetattr, rootID, 5, raw(getattrIn{})), nil)
		if m.NeedsReset() {
			t.Error("the device needs a reset")
		}
	}
}

// TestWithoutHiprio: OVMF's driver sets up the request queue alone.
func TestWithoutHiprio(t *testing.T) {
	d, err := New(Config{Tag: "t", Path: t.TempDir()})
	must(t, err)
	m := virtiotest.New(t, d, virtiotest.Options{Skip: []int{hiprioQueue}})
	if b, e := ask(m.Queue[1], opInit, 0, sizeOf[initOut](), raw(initIn{Major: 7, Minor: 31})); e != 0 || view[initOut](b).Major != 7 {
		t.Errorf("INIT: %v", e)
	}
	m.Reset()
	must(t, d.Close())
}

func TestActivateNeedsQueues(t *testing.T) {
	d, err := New(Config{Tag: "t", Path: t.TempDir()})
	must(t, err)
	defer d.Close()
	d.Reset()
	m := virtiotest.New(t, d, virtiotest.Options{})
	if d.Close() == nil {
		t.Error("closed while active")
	}
	m.Reset()
	for i := range 100 { // a reset storm
		if err := m.Activate(); err != nil {
			t.Fatal(err)
		}
		if i%3 == 0 {
			m.Queue[1].Add(message(opInit, 0, 1, raw(initIn{Major: 7, Minor: 41})), []int{100})
			m.Queue[1].Kick()
		}
		m.Reset()
	}
}

// A request that blocks by surprise gives its queue up; Reset waits for it.
func TestStall(t *testing.T) {
	gate := make(chan struct{})
	operations[opBmap] = operation{serve: func(r *request) (int, unix.Errno) { <-gate; return 0, 0 }}
	defer func() { operations[opBmap] = operation{} }()
	m, _, _ := machine(t, nil, virtiotest.Options{})
	q := m.Queue[1]
	for range 5 {
		q.Add(message(opBmap, rootID, 1), []int{16})
	}
	q.Add(message(opGetattr, rootID, 77, raw(getattrIn{})), []int{outHeaderSize, sizeOf[attrOut]()})
	q.Kick()
	start := time.Now()
	if u := q.Wait(); view[outHeader](u.Bytes()).Unique != 77 {
		t.Errorf("answer to %d came first", view[outHeader](u.Bytes()).Unique)
	}
	t.Logf("a request behind five that hang took %v", time.Since(start))
	done := make(chan struct{})
	go func() { m.Reset(); close(done) }()
	select {
	case <-done:
		t.Error("Reset did not wait")
	case <-time.After(10 * time.Millisecond):
	}
	close(gate)
	<-done
}

// Requests that wait for locks do not starve others, can be interrupted, and
// end with a reset.
func TestLockWaits(t *testing.T) {
	m, _, dir := machine(t, func(c *Config) { c.Locks = true }, virtiotest.Options{})
	q := m.Queue[1]
	p := filepath.Join(dir, "f")
	put(t, p, "x")
	host, err := os.OpenFile(p, os.O_RDWR, 0)
	must(t, err)
	defer host.Close()
	must(t, unix.FcntlFlock(host.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Len: 1}))
	must(t, unix.Flock(int(host.Fd()), unix.LOCK_EX))
	b, _ := ask(q, opLookup, rootID, entryOutSize, str("f"))
	node := view[entryOut](b).NodeID
	b, _ = ask(q, opOpen, node, 16, raw(openIn{Flags: unix.O_RDWR}))
	fh := view[openOut](b).FH
	const waiters = 60
	for i := range uint64(waiters) {
		in := lkIn{FH: fh, Owner: i, Lk: fileLock{0, 0, unix.F_WRLCK, 1}, Flags: uint32(i % 2 * lkFlock)}
		q.Add(message(opSetlkw, node, 1000+i, raw(in)), []int{outHeaderSize})
	}
	q.Kick()
	for range 20 {
		if _, e := ask(q, opGetattr, node, sizeOf[attrOut](), raw(getattrIn{})); e != 0 {
			t.Fatal(e)
		}
	}
	// Interrupt one of each kind. The request may not be waiting yet.
	for _, unique := range []uint64{1000, 1001} {
		for {
			if _, e := parse(m.Queue[0].Do(message(opInterrupt, 0, unique|1<<63, raw(interruptIn{unique})), []int{outHeaderSize})); e != unix.EAGAIN {
				break
			}
			time.Sleep(time.Millisecond)
		}
		u := q.Wait()
		if _, e := parse(u); e != unix.EINTR || view[outHeader](u.Bytes()).Unique != unique {
			t.Errorf("answer to %d: %v", view[outHeader](u.Bytes()).Unique, e)
		}
	}
	if _, e := parse(m.Queue[0].Do(message(opInterrupt, 0, 1, raw(interruptIn{424242})), []int{outHeaderSize})); e != unix.EAGAIN {
		t.Errorf("INTERRUPT of nothing: %v", e)
	}
	start := time.Now()
	m.Reset()
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("Reset took %v", d)
	}
	// Nobody got the locks meanwhile, and nobody holds any now.
	must(t, host.Close())
	other, err := os.OpenFile(p, os.O_RDWR, 0)
	must(t, err)
	defer other.Close()
	must(t, unix.FcntlFlock(other.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Len: 1}))
	must(t, unix.Flock(int(other.Fd()), unix.LOCK_EX|unix.LOCK_NB))
}

func TestLocks(t *testing.T) {
	c, dir := newShare(t, func(c *Config) { c.Locks = true })
	put(t, filepath.Join(dir, "f"), "x")
	f := c.node("f")
	fh := c.open(f, unix.O_RDWR).FH
	lk := func(owner uint64, typ uint32, start, end uint64) []byte {
		return raw(lkIn{FH: fh, Owner: owner, Lk: fileLock{start, end, typ, uint32(100 + owner)}})
	}
	c.must(opSetlk, f, lk(1, unix.F_WRLCK, 0, 9))
	c.must(opSetlk, f, lk(1, unix.F_RDLCK, 0, 4)) // its own lock is no obstacle
	c.fails(opSetlk, f, unix.EAGAIN, lk(2, unix.F_RDLCK, 5, 5))
	c.must(opSetlk, f, lk(2, unix.F_RDLCK, 0, 4))
	c.must(opSetlk, f, lk(2, unix.F_WRLCK, 10, 99))
	c.must(opSetlk, f, lk(2, unix.F_WRLCK, 101, maxOffset))
	g := view[lkOut](c.must(opGetlk, f, lk(1, unix.F_RDLCK, 20, 30))).Lk
	if g.Type != unix.F_WRLCK || g.Start != 10 || g.End != 99 || g.PID != 102 {
		t.Errorf("conflict %+v", g)
	}
	if g := view[lkOut](c.must(opGetlk, f, lk(3, unix.F_RDLCK, 0, 4))).Lk; g.Type != unix.F_UNLCK {
		t.Errorf("conflict %+v", g)
	}
	c.must(opSetlk, f, lk(9, unix.F_UNLCK, 0, 9))
	// close(2) of any descriptor gives all of the owner's locks back.
	c.must(opFlush, f, raw(flushIn{FH: fh, LockOwner: 1}))
	c.must(opSetlk, f, lk(2, unix.F_WRLCK, 0, 9))
	for _, in := range []fileLock{{5, 4, 0, 1}, {0, 1 << 63, 0, 1}, {1 << 63, 1 << 63, 0, 1}, {0, 1, 3, 1}, {0, 1, 1 << 31, 1}} {
		c.fails(opSetlk, f, unix.EINVAL, raw(lkIn{FH: fh, Owner: 1, Lk: in}))
	}
	// flock belongs to the handle.
	other := c.open(f, unix.O_RDWR).FH
	fl := func(fh uint64, typ uint32) []byte {
		return raw(lkIn{FH: fh, Lk: fileLock{Type: typ}, Flags: lkFlock})
	}
	c.must(opSetlk, f, fl(fh, unix.F_RDLCK))
	c.must(opSetlk, f, fl(other, unix.F_RDLCK))
	c.fails(opSetlk, f, unix.EAGAIN, fl(other, unix.F_WRLCK))
	c.must(opSetlk, f, fl(fh, unix.F_UNLCK))
	c.must(opSetlk, f, fl(other, unix.F_WRLCK))
	c.must(opRelease, f, raw(releaseIn{FH: other, ReleaseFlags: 2}))
	c.must(opSetlk, f, fl(fh, unix.F_WRLCK))
	// So do a guest's own open file description locks, which no FLUSH ends.
	ofd := c.open(f, unix.O_RDWR).FH
	c.must(opSetlk, f, raw(lkIn{FH: ofd, Owner: 77, Lk: fileLock{100, 100, unix.F_WRLCK, 1}}))
	c.must(opRelease, f, raw(releaseIn{FH: ofd}))
	c.must(opSetlk, f, lk(5, unix.F_WRLCK, 100, 100))
	d := c.opendir(rootID)
	c.must(opSetlk, rootID, raw(lkIn{FH: d, Lk: fileLock{Type: unix.F_WRLCK}, Flags: lkFlock}))
	c.fails(opSetlk, rootID, unix.EBADF, raw(lkIn{FH: d, Lk: fileLock{Type: unix.F_WRLCK}}))
	off, _ := newShare(t, nil)
	off.fails(opSetlk, rootID, unix.ENOSYS, fl(1, 0))
	off.fails(opFlush, rootID, unix.ENOSYS, raw(flushIn{}))
}
