package fs

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// What fstat says of a file is what statx says, but for the mount's ID.
func TestFstat(t *testing.T) {
	c, dir := newShare(t, nil)
	put(t, filepath.Join(dir, "file"), "content")
	must(t, os.Chmod(filepath.Join(dir, "file"), 0o4750))
	must(t, os.Mkdir(filepath.Join(dir, "dir"), 0o1777))
	must(t, os.Symlink("target", filepath.Join(dir, "link")))
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	names := []string{"file", "dir", "link", "fifo"}
	if os.Geteuid() == 0 {
		must(t, unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(0x123, 0x45678))))
		names = append(names, "null")
	}
	for _, name := range names {
		fd, err := unix.Open(filepath.Join(dir, name), unix.O_PATH|unix.O_NOFOLLOW, 0)
		must(t, err)
		if e := c.r.fstat(fd); e != 0 {
			t.Fatal(e)
		}
		var want unix.Statx_t
		if e := sysFstatx(fd, &want); e != 0 {
			t.Fatal(e)
		}
		got, i := c.r.st, &inode{}
		got.Mnt_id = want.Mnt_id
		if keyOf(&got) != keyOf(&want) {
			t.Errorf("%s: key %+v, want %+v", name, keyOf(&got), keyOf(&want))
		}
		var a, b attr
		c.r.fill(&a, i)
		c.r.st = want
		c.r.fill(&b, i)
		if a != b {
			t.Errorf("%s: %+v, want %+v", name, a, b)
		}
		unix.Close(fd)
	}
}

// READDIRPLUS looks up all of a directory, also without the guest having looked at
// any of it, but only the beginning of a huge one.
func TestListingLooks(t *testing.T) {
	c, dir := newShare(t, nil)
	if f := uint64(c.start().Flags); f&initDoReaddirplus == 0 || f&initReaddirplusAuto != 0 {
		t.Errorf("INIT flags %#x", f)
	}
	never, _ := newShare(t, func(c *Config) { c.Cache = CacheNever })
	if never.start().Flags&initDoReaddirplus != 0 {
		t.Error("READDIRPLUS for a guest that keeps nothing")
	}
	small := filepath.Join(dir, "small")
	must(t, os.Mkdir(small, 0o755))
	for i := range 100 {
		put(t, filepath.Join(small, fmt.Sprint(i)), "")
	}
	n := c.node("small")
	for pass := range 2 {
		found := c.list(n, true, 4096)
		for name, e := range found {
			if name != "." && name != ".." && (e.NodeID == 0 || e.NodeID != c.lookup(n, name).NodeID) {
				t.Errorf("pass %d: %q is node %d", pass, name, e.NodeID)
			}
		}
		if len(found) != 102 {
			t.Errorf("pass %d: %d entries", pass, len(found))
		}
	}
	huge := filepath.Join(dir, "huge")
	must(t, os.Mkdir(huge, 0o755))
	for i := range plusMost + 100 {
		put(t, filepath.Join(huge, fmt.Sprint(i)), "")
	}
	n = c.node("huge")
	for pass := range 2 {
		looked := 0
		found := c.list(n, true, 4096)
		for _, e := range found {
			if e.NodeID != 0 {
				looked++
			}
		}
		if looked != plusMost || len(found) != plusMost+102 {
			t.Errorf("pass %d: %d entries, %d of them looked up", pass, len(found), looked)
		}
	}
}

// A file that was made has its own inode, whatever has its name when that is looked at.
func TestCreatedAndReplaced(t *testing.T) {
	c, dir := newShare(t, nil)
	fd, err := unix.Open(filepath.Join(dir, "f"), unix.O_CREAT|unix.O_RDWR, 0o644)
	must(t, err)
	defer unix.Close(fd)
	c.r.mk.name = str("f")
	check := func(what string) {
		t.Helper()
		i, e := c.r.enterOpen(c.dev.root, fd)
		if e != 0 {
			t.Fatalf("%s: %v", what, e)
		}
		var st unix.Stat_t
		must(t, unix.Fstat(fd, &st))
		if i.key.ino != st.Ino || c.r.st.Ino != st.Ino || i.key.mnt != c.dev.root.key.mnt {
			t.Errorf("%s: inode %+v, attributes of %d, want %d", what, i.key, c.r.st.Ino, st.Ino)
		}
		c.dev.nodes.forget(i.id, 1)
		i.put()
	}
	check("in its place")
	must(t, os.Rename(filepath.Join(dir, "f"), filepath.Join(dir, "g")))
	check("gone")
	put(t, filepath.Join(dir, "f"), "another")
	check("replaced")
	must(t, os.Remove(filepath.Join(dir, "f")))
	must(t, os.Symlink("g", filepath.Join(dir, "f")))
	check("replaced by a link")
}

// A directory that may be read but not searched is listed without root, too.
func TestOpendirWithoutSearch(t *testing.T) {
	c, dir := newShare(t, nil)
	must(t, os.Mkdir(filepath.Join(dir, "d"), 0o755))
	put(t, filepath.Join(dir, "d", "f"), "")
	n := c.node("d")
	must(t, os.Chmod(filepath.Join(dir, "d"), 0o400))
	defer os.Chmod(filepath.Join(dir, "d"), 0o700)
	if l := c.list(n, false, 4096); len(l) != 3 {
		t.Errorf("listing %v", l)
	}
}
