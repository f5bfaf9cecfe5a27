package fs

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestEphemeral(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	put(t, filepath.Join(dir, "f"), "lower")
	must(t, os.MkdirAll(filepath.Join(dir, "d", "e"), 0o755))
	put(t, filepath.Join(dir, "d", "g"), "lower")
	must(t, os.Chown(dir, 7, 8))
	before := tree(dir, true, true)
	root, err := Ephemeral(dir)
	if err != nil && strings.Contains(err.Error(), "no such device") {
		t.Skip(err)
	}
	must(t, err)
	d, err := New(Config{Tag: "t", Root: root})
	must(t, err)
	must(t, root.Close())
	c := newClient(t, d)
	c.start()
	if a := c.getattr(rootID); a.UID != 7 || a.GID != 8 {
		t.Errorf("root %+v", a)
	}
	f := c.node("f")
	rd := c.open(f, unix.O_RDONLY).FH
	fh := c.open(f, unix.O_RDWR).FH
	c.write(f, fh, 0, []byte("UPPER"))
	if got := string(c.read(f, rd, 0, 10)); got != "UPPER" {
		t.Errorf("a handle opened before the first write reads %q", got)
	}
	if got := c.node("f"); got != f {
		t.Error("the first write made another inode of the file")
	}
	c.create(rootID, "new", 0o644)
	c.must(opUnlink, c.node("d"), str("g"))
	c.must(opRename, rootID, raw(renameIn{Newdir: rootID}), str("d"), str("moved"))
	if l := c.list(c.node("moved"), true, 4096); len(l) != 3 || l["e"].NodeID == 0 {
		t.Errorf("listing %v", l)
	}
	must(t, d.Close())
	if after := tree(dir, true, true); after != before {
		t.Errorf("the directory changed:\n%s\nwas:\n%s", after, before)
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	if strings.Contains(string(b), "gvmspawn-ephemeral") {
		t.Error("the mount can be seen")
	}
	if _, err := Ephemeral(filepath.Join(dir, "f")); err == nil {
		t.Error("an ephemeral file")
	}
}

// TestRandomOperationsOnOverlay is TestRandomOperations on an ephemeral share.
func TestRandomOperationsOnOverlay(t *testing.T) {
	needRoot(t)
	lower := t.TempDir()
	must(t, os.Mkdir(filepath.Join(lower, "d0"), 0o755))
	put(t, filepath.Join(lower, "d0", "a"), "lower")
	put(t, filepath.Join(lower, "b"), strings.Repeat("lower", 10000))
	root, err := Ephemeral(lower)
	if err != nil {
		t.Skip(err)
	}
	defer root.Close()
	plain := t.TempDir()
	must(t, os.CopyFS(plain, os.DirFS(lower)))
	must(t, filepath.WalkDir(plain, func(p string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			err = os.Chmod(p, 0o644)
		} else if err == nil {
			err = os.Chmod(p, 0o755)
		}
		return err
	}))
	must(t, os.Chmod(lower, 0o755))
	mnt := mount(t, Config{Tag: "t", Path: lower}, root)
	must(t, os.Chmod(mnt, 0o755))
	p := &pair{t: t, rnd: rand.New(rand.NewPCG(3, 3)), dirs: [2]string{mnt, plain}, portable: true}
	defer func() {
		for len(p.fds) > 0 {
			p.closeFD(0)
		}
	}()
	for range 3000 {
		p.step()
	}
	p.both("the end", func(dir string, _ int) string { return tree(dir, true, false) })
}
