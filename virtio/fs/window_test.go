package fs

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// window notes what is mapped, without mapping it.
type window struct {
	size  uint64
	calls []string
	fail  error
}

func newWindow(size uint64) *window { return &window{size: size} }

func (w *window) Size() uint64 { return w.size }

func (w *window) MapFile(at uint64, _ int, off int64, length uint64, prot int) error {
	w.calls = append(w.calls, fmt.Sprintf("map %#x %#x %#x %d", at, off, length, prot))
	return w.fail
}

func (w *window) UnmapFile(at, length uint64) error {
	w.calls = append(w.calls, fmt.Sprintf("unmap %#x %#x", at, length))
	return w.fail
}

// daxShare is a share with a window of 8 MiB.
func daxShare(t testing.TB, w Window) (*client, string) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "f"), "contents")
	d, err := New(Config{Tag: "t", Path: dir, DAXSize: 8 << 20, DAXMinFile: 1000})
	must(t, err)
	t.Cleanup(func() { _ = d.Close() })
	must(t, d.SetWindow(w))
	c := newClient(t, d)
	if o := c.start(); o.MapAlignment != daxShift || o.Flags2&(initHasInodeDAX>>32) == 0 {
		t.Errorf("INIT: %+v", o)
	}
	return c, dir
}

func TestDAXRequests(t *testing.T) {
	w := newWindow(8 << 20)
	c, dir := daxShare(t, w)
	f := c.node("f")
	const rw = setupmappingRead | setupmappingWrite
	none := uint64(math.MaxUint64)
	w.calls = nil
	c.must(opSetupmapping, f, raw(setupmappingIn{FH: none, Len: daxRange, Flags: setupmappingRead}))
	c.must(opSetupmapping, f, raw(setupmappingIn{FH: none, FOffset: daxRange, Len: 2 * daxRange, MOffset: 2 * daxRange, Flags: rw}))
	c.must(opRemovemapping, f, le32(2), raw(removemappingOne{0, daxRange}), raw(removemappingOne{2 * daxRange, daxRange}))
	want := "[map 0x0 0x0 0x200000 1 map 0x400000 0x200000 0x400000 3 unmap 0x0 0x200000 unmap 0x400000 0x200000]"
	if got := fmt.Sprint(w.calls); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	w.calls = nil
	for _, in := range []setupmappingIn{
		{Len: 0}, {Len: 4096}, {Len: daxRange, MOffset: 4096}, {Len: daxRange, FOffset: 4096},
		{Len: 16 << 20}, {Len: daxRange, MOffset: 8 << 20}, {Len: 2 * daxRange, MOffset: 6 << 20},
		{Len: math.MaxUint64 &^ (daxRange - 1), MOffset: daxRange}, {Len: daxRange, MOffset: math.MaxUint64 &^ (daxRange - 1)},
		{Len: daxRange, FOffset: math.MaxUint64 &^ (daxRange - 1)}, {Len: daxRange, FOffset: 1 << 63}, {Len: daxRange, Flags: 4},
	} {
		c.fails(opSetupmapping, f, unix.EINVAL, raw(in))
	}
	c.fails(opSetupmapping, rootID, unix.EINVAL, raw(setupmappingIn{Len: daxRange}))
	c.fails(opSetupmapping, 999, unix.ESTALE, raw(setupmappingIn{Len: daxRange}))
	c.fails(opRemovemapping, f, unix.EINVAL, le32(math.MaxUint32), raw(removemappingOne{0, daxRange}))
	c.fails(opRemovemapping, f, unix.EINVAL, le32(1), raw(removemappingOne{0, math.MaxUint64}))
	c.fails(opRemovemapping, f, unix.EINVAL, le32(1), raw(removemappingOne{8 << 20, daxRange}))
	c.fails(opRemovemapping, f, unix.EINVAL, le32(1), raw(removemappingOne{0, 0}))
	if len(w.calls) != 0 {
		t.Errorf("bad requests did %v", w.calls)
	}
	w.fail = fmt.Errorf("map: %w", unix.ENOMEM)
	c.fails(opSetupmapping, f, unix.ENOMEM, raw(setupmappingIn{Len: daxRange}))
	w.fail = errors.New("broken")
	c.fails(opSetupmapping, f, unix.EIO, raw(setupmappingIn{Len: daxRange}))
	w.fail = nil
	c.must(opDestroy, 0)
	if got := w.calls[len(w.calls)-1]; got != "unmap 0x0 0x800000" {
		t.Errorf("at the end: %s", got)
	}
	// Small files stay out, and an inode does not change its mind.
	c.start()
	if a := c.lookup(rootID, "f").Attr; a.Flags&attrDAX != 0 {
		t.Error("a small file has FUSE_ATTR_DAX")
	}
	must(t, os.Truncate(filepath.Join(dir, "f"), 2000))
	if a := c.lookup(rootID, "f").Attr; a.Flags&attrDAX != 0 {
		t.Error("an inode changed its mind")
	}
	put(t, filepath.Join(dir, "big"), string(make([]byte, 2000)))
	if a := c.lookup(rootID, "big").Attr; a.Flags&attrDAX == 0 {
		t.Error("a big file has no FUSE_ATTR_DAX")
	}
}

// A file that shrinks under its mapping: the page becomes zeros, which no file sees.
func TestDAXRepair(t *testing.T) {
	m := mem.New()
	defer m.Close()
	region, err := m.Add("dax", 1<<36, 8<<20, mem.Window)
	must(t, err)
	c, dir := daxShare(t, region)
	p := filepath.Join(dir, "f")
	put(t, p, string(make([]byte, 3*pageSize)))
	f := c.node("f")
	c.must(opSetupmapping, f, raw(setupmappingIn{FH: math.MaxUint64, Len: daxRange, MOffset: daxRange, Flags: setupmappingRead | setupmappingWrite}))
	b := region.Bytes()[daxRange:]
	b[0] = 'A'
	if got := content(t, p)[0]; got != 'A' {
		t.Errorf("the file begins with %q", got)
	}
	must(t, os.Truncate(p, pageSize))
	must(t, c.dev.RepairWindow(daxRange+pageSize+17)) // as after the CPU's fault
	if b[pageSize] != 0 || b[2*pageSize] != 0 || b[0] != 'A' {
		t.Error("wrong contents after the repair")
	}
	b[pageSize] = 'B'
	if got := content(t, p); len(got) != pageSize {
		t.Errorf("the file has %d bytes", len(got))
	}
	// The next user of the range gets its file, and later no old data.
	put(t, filepath.Join(dir, "g"), string(make([]byte, 2*pageSize)))
	c.must(opSetupmapping, c.node("g"), raw(setupmappingIn{FH: math.MaxUint64, Len: daxRange, MOffset: daxRange, Flags: setupmappingRead}))
	if b[0] != 0 || b[pageSize] != 0 {
		t.Error("old data in a new mapping")
	}
	must(t, c.dev.RepairWindow(daxRange))
	if b[pageSize] != 0 {
		t.Error("the lost page's old data came back")
	}
	// The same where the engine does not know the page.
	if n := c.dev.RepairShrunk(true); n != 0 {
		t.Errorf("%d ranges repaired, none shrank", n)
	}
	put(t, filepath.Join(dir, "h"), string(bytes.Repeat([]byte{'h'}, 3*pageSize)))
	c.must(opSetupmapping, c.node("h"), raw(setupmappingIn{FH: math.MaxUint64, Len: daxRange, MOffset: 0, Flags: setupmappingRead}))
	must(t, os.Truncate(filepath.Join(dir, "h"), 100))
	if n := c.dev.RepairShrunk(true); n != 1 {
		t.Errorf("%d ranges repaired", n)
	}
	if b := region.Bytes(); b[0] != 'h' || b[pageSize] != 0 || b[daxRange-1] != 0 {
		t.Error("wrong contents after the repair")
	}
	if n := c.dev.RepairShrunk(true); n != 0 {
		t.Errorf("%d ranges repaired again", n)
	}
	if n := c.dev.RepairShrunk(false); n != 0 {
		t.Errorf("%d ranges repaired that nobody truncated", n)
	}
	// What the file gets anew is there when the guest learns of it.
	region.Bytes()[pageSize] = 'L'
	put(t, filepath.Join(dir, "h"), string(bytes.Repeat([]byte{'n'}, 2*pageSize)))
	if size := c.lookup(rootID, "h").Attr.Size; size != 2*pageSize || region.Bytes()[pageSize] != 'n' {
		t.Errorf("size %d, contents %q", size, region.Bytes()[pageSize])
	}
	must(t, os.Truncate(filepath.Join(dir, "h"), 100))
	if n := c.dev.RepairShrunk(false); n != 1 || region.Bytes()[pageSize] != 0 {
		t.Errorf("truncated again: %d ranges repaired, contents %q", n, region.Bytes()[pageSize])
	}
	before := fdsInUse.Load()
	c.must(opRemovemapping, 0, le32(1), raw(removemappingOne{0, 4 * daxRange}))
	if n := before - fdsInUse.Load(); n != 2 {
		t.Errorf("%d descriptors given back", n)
	}
	for _, off := range []uint64{8 << 20, math.MaxUint64} {
		if c.dev.RepairWindow(off) == nil {
			t.Errorf("repaired %#x", off)
		}
	}
	if err := c.dev.SetWindow(newWindow(4 << 20)); err == nil {
		t.Error("a window of the wrong size was taken")
	}
}
