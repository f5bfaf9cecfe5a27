package fs

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair does the same to a mount of the device and to a plain directory.
type pair struct {
	t    *testing.T
	rnd  *rand.Rand
	dirs [2]string // the mount, the plain directory
	fds  [][2]int
	log  []string
	// portable leaves out what file systems do differently.
	portable bool
}

// both runs f in both trees and compares what it says.
func (p *pair) both(what string, f func(dir string, side int) string) {
	p.t.Helper()
	p.log = append(p.log, what)
	a, b := f(p.dirs[0], 0), f(p.dirs[1], 1)
	if a != b {
		p.t.Fatalf("%s:\n  mount: %.300s\n  plain: %.300s\nbefore: %s", what, a, b, strings.Join(p.log[max(0, len(p.log)-15):], "; "))
	}
}

func result(n int, err error) string {
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(n)
}

func sum(b []byte) string { return fmt.Sprintf("%d %x", len(b), sha256.Sum256(b)) }

// path is one of few names, so that operations meet.
func (p *pair) path() string {
	n := string(rune('a' + p.rnd.IntN(6)))
	if p.rnd.IntN(2) == 0 {
		n = "d" + string(rune('0'+p.rnd.IntN(3))) + "/" + n
	}
	return n
}

func (p *pair) data() []byte {
	b := make([]byte, p.rnd.IntN(20000))
	for i := range b {
		b[i] = byte(p.rnd.Uint32())
	}
	return b
}

func (p *pair) off() int64 { return p.rnd.Int64N(60000) }

// step does something at random.
func (p *pair) step() {
	x, y := p.path(), p.path()
	switch p.rnd.IntN(24) {
	case 0, 1, 2:
		flags := unix.O_RDWR | []int{0, unix.O_CREAT, unix.O_CREAT | unix.O_EXCL, unix.O_CREAT | unix.O_TRUNC, unix.O_CREAT | unix.O_APPEND, unix.O_TRUNC}[p.rnd.IntN(6)]
		p.open(x, flags)
	case 3, 4, 5, 6:
		p.io()
	case 7:
		d := fmt.Sprintf("d%d", p.rnd.IntN(3))
		p.both("mkdir "+d, func(dir string, _ int) string { return result(0, unix.Mkdir(dir+"/"+d, 0o755)) })
	case 8:
		d := fmt.Sprintf("d%d", p.rnd.IntN(3))
		p.both("rmdir "+d, func(dir string, _ int) string { return result(0, unix.Rmdir(dir+"/"+d)) })
	case 9, 10:
		p.both("unlink "+x, func(dir string, _ int) string { return result(0, unix.Unlink(dir+"/"+x)) })
	case 11, 12:
		flags := []uint{0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE}[p.rnd.IntN(4)]
		p.both(fmt.Sprint("rename ", x, " ", y, " ", flags), func(dir string, _ int) string {
			return result(0, unix.Renameat2(unix.AT_FDCWD, dir+"/"+x, unix.AT_FDCWD, dir+"/"+y, flags))
		})
	case 13:
		p.both("link "+x+" "+y, func(dir string, _ int) string { return result(0, unix.Link(dir+"/"+x, dir+"/"+y)) })
	case 14:
		p.both("symlink "+x+" "+y, func(dir string, _ int) string { return result(0, unix.Symlink(filepath.Base(x), dir+"/"+y)) })
	case 15:
		mode := p.rnd.Uint32N(0o2000) // without set-ID bits: TestKillSetID
		p.both(fmt.Sprintf("chmod %s %o", x, mode), func(dir string, _ int) string { return result(0, unix.Chmod(dir+"/"+x, mode)) })
	case 16:
		uid := p.rnd.IntN(3)
		p.both(fmt.Sprint("chown ", x, uid), func(dir string, _ int) string { return result(0, unix.Lchown(dir+"/"+x, uid, uid+1)) })
	case 17:
		n := p.off()
		p.both(fmt.Sprint("truncate ", x, n), func(dir string, _ int) string { return result(0, unix.Truncate(dir+"/"+x, n)) })
	case 18:
		p.times(x)
	case 19:
		p.xattr(x)
	case 20, 21:
		p.both("read "+x, func(dir string, _ int) string {
			b, err := os.ReadFile(dir + "/" + x)
			if err != nil {
				return err.(*os.PathError).Err.Error()
			}
			return sum(b)
		})
	case 22:
		contents := p.rnd.IntN(2) == 0
		p.both("compare", func(dir string, _ int) string { return tree(dir, contents, !p.portable) })
	case 23:
		p.mapped(x)
	}
}

func (p *pair) open(x string, flags int) {
	var fds [2]int
	p.both(fmt.Sprintf("open %s %#x", x, flags), func(dir string, side int) (s string) {
		fd, err := unix.Open(dir+"/"+x, flags|unix.O_CLOEXEC, 0o666)
		fds[side] = fd
		return result(0, err)
	})
	if fds[0] < 0 {
		return
	}
	p.fds = append(p.fds, fds)
	if len(p.fds) > 6 {
		p.closeFD(0)
	}
}

func (p *pair) closeFD(i int) {
	_, _ = unix.Close(p.fds[i][0]), unix.Close(p.fds[i][1])
	p.fds = slices.Delete(p.fds, i, i+1)
}

// io does something with an open file, which may have no name any more.
func (p *pair) io() {
	if len(p.fds) == 0 {
		return
	}
	i := p.rnd.IntN(len(p.fds))
	fds, off, data := p.fds[i], p.off(), p.data()
	on := func(what string, f func(fd int) string) {
		p.both(fmt.Sprint(what, " fd ", i, " at ", off, " ", len(data)), func(_ string, side int) string { return f(fds[side]) })
	}
	switch p.rnd.IntN(9) {
	case 0, 1:
		on("pwrite", func(fd int) string { return result(unix.Pwrite(fd, data, off)) })
	case 2:
		on("pread", func(fd int) string {
			b := make([]byte, len(data))
			n, err := unix.Pread(fd, b, off)
			return result(n, err) + sum(b[:max(n, 0)])
		})
	case 3:
		on("ftruncate", func(fd int) string { return result(0, unix.Ftruncate(fd, off)) })
	case 4:
		if p.portable {
			return
		}
		mode := []uint32{0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE}[p.rnd.IntN(4)]
		on(fmt.Sprint("fallocate ", mode), func(fd int) string { return result(0, unix.Fallocate(fd, mode, off, int64(len(data))+1)) })
	case 5:
		on("fstat", func(fd int) string {
			var st unix.Stat_t
			err := unix.Fstat(fd, &st)
			return result(int(st.Size), err) + fmt.Sprintf(" %o %d %d:%d", st.Mode, st.Nlink, st.Uid, st.Gid)
		})
	case 6:
		j := p.rnd.IntN(len(p.fds))
		on(fmt.Sprint("copy to fd ", j), func(fd int) string {
			side := 0
			if fd == fds[1] {
				side = 1
			}
			from, to := off, off/2
			return result(unix.CopyFileRange(fd, &from, p.fds[j][side], &to, len(data), 0))
		})
	case 7:
		on("fsync", func(fd int) string { return result(0, unix.Fdatasync(fd)) })
	case 8:
		p.closeFD(i)
	}
}

func (p *pair) times(x string) {
	ts := []unix.Timespec{{Sec: p.rnd.Int64N(1 << 31), Nsec: p.rnd.Int64N(1e9)}, {Sec: p.rnd.Int64N(1 << 31), Nsec: p.rnd.Int64N(1e9)}}
	p.both("utimens "+x, func(dir string, _ int) string {
		err := unix.UtimesNanoAt(unix.AT_FDCWD, dir+"/"+x, ts, unix.AT_SYMLINK_NOFOLLOW)
		var st unix.Stat_t
		_ = unix.Lstat(dir+"/"+x, &st)
		return result(int(st.Mtim.Sec), err) + fmt.Sprint(st.Mtim.Nsec)
	})
}

func (p *pair) xattr(x string) {
	name, v := "user.x"+string(rune('0'+p.rnd.IntN(3))), p.data()[:0]
	v = append(v, fmt.Sprint(p.rnd.Uint64())...)
	p.both("xattr "+x, func(dir string, _ int) string {
		f := dir + "/" + x
		s := result(0, unix.Lsetxattr(f, name, v, 0))
		b := make([]byte, 100)
		n, err := unix.Lgetxattr(f, name, b)
		return s + result(n, err) + string(b[:max(n, 0)])
	})
}

// mapped changes a file through a shared mapping.
func (p *pair) mapped(x string) {
	at := p.rnd.IntN(4096)
	p.both("mmap "+x, func(dir string, _ int) string {
		fd, err := unix.Open(dir+"/"+x, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err.Error()
		}
		defer unix.Close(fd)
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Size <= int64(at) {
			return result(int(st.Size), err)
		}
		b, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return err.Error()
		}
		old := b[at]
		b[at] = old + 1
		_ = unix.Msync(b, unix.MS_SYNC)
		_ = unix.Munmap(b)
		return fmt.Sprint(old)
	})
}

// tree describes a whole tree.
func tree(dir string, contents, dirLinks bool) string {
	var b strings.Builder
	_ = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			fmt.Fprintln(&b, path[len(dir):], err)
			return nil
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(path, &st); err != nil {
			fmt.Fprintln(&b, path[len(dir):], err)
			return nil
		}
		size := st.Size
		if e.IsDir() {
			size = 0
			if !dirLinks {
				st.Nlink = 0
			}
		}
		fmt.Fprintf(&b, "%s %o %d %d:%d %d", path[len(dir):], st.Mode, st.Nlink, st.Uid, st.Gid, size)
		if e.Type() == os.ModeSymlink {
			l, _ := os.Readlink(path)
			b.WriteString(" -> " + l)
		}
		if contents && e.Type() == 0 {
			c, _ := os.ReadFile(path)
			b.WriteString(" " + sum(c))
		}
		b.WriteByte('\n')
		return nil
	})
	return b.String()
}

// TestRandomOperations does thousands of operations on the device through this
// machine's kernel and on a plain directory; results and trees must be the same,
// also on the host's side of the share.
func TestRandomOperations(t *testing.T) {
	for seed, c := range []struct {
		name string
		edit func(*Config)
	}{
		{"auto", func(c *Config) { c.Locks = true }},
		{"always", func(c *Config) { c.Cache = CacheAlways }},
		{"never", func(c *Config) { c.Cache = CacheNever }},
		{"writeback", func(c *Config) { c.Writeback = true }},
		{"acl", func(c *Config) { c.ACL = true }},
		{"mapped", func(c *Config) { c.IDMap = IDMap{50000, 10000}; must(t, os.Chown(c.Path, 50000, 50000)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			mnt, share := mounted(t, c.edit)
			p := &pair{t: t, rnd: rand.New(rand.NewPCG(uint64(seed), 1)), dirs: [2]string{mnt, t.TempDir()}}
			must(t, os.Chmod(mnt, 0o755))
			must(t, os.Chmod(p.dirs[1], 0o755))
			defer func() {
				for len(p.fds) > 0 {
					p.closeFD(0)
				}
			}()
			for range 4000 {
				p.step()
			}
			for len(p.fds) > 0 {
				p.closeFD(0)
			}
			p.both("the end", func(dir string, _ int) string { return tree(dir, true, !p.portable) })
			if c.name != "mapped" {
				p.dirs[0] = share
				p.both("the host", func(dir string, _ int) string { return tree(dir, true, !p.portable) })
			}
		})
	}
}

// TestGuestHalf is the guest's half of TestLinuxDriver: it does the same to the
// two directories of $FS_TEST_PAIR.
func TestGuestHalf(t *testing.T) {
	a, b, ok := strings.Cut(os.Getenv("FS_TEST_PAIR"), ":")
	if !ok {
		t.Skip("runs in the guest of TestLinuxDriver")
	}
	p := &pair{t: t, rnd: rand.New(rand.NewPCG(7, 7)), dirs: [2]string{a, b}, portable: true}
	for range 1500 {
		p.step()
	}
	for len(p.fds) > 0 {
		p.closeFD(0)
	}
	p.both("the end", func(dir string, _ int) string { return tree(dir, true, !p.portable) })
}

// TestCoherence changes files on the host under a mount that caches.
func TestCoherence(t *testing.T) {
	mnt, dir := mounted(t, func(c *Config) { c.Timeout = 50 * time.Millisecond })
	p := filepath.Join(dir, "f")
	for i := range 20 {
		want := fmt.Sprintf("version %02d", i)
		put(t, p, want) // the same size every time
		if i%4 == 3 {
			must(t, os.Rename(p, p+"~"))
			must(t, os.Rename(p+"~", p))
		}
		time.Sleep(60 * time.Millisecond)
		if got := content(t, mnt, "f"); got != want {
			t.Fatalf("the guest reads %q, the host wrote %q", got, want)
		}
		if got := content(t, mnt, "f"); got != want { // from the cache
			t.Fatalf("again the guest reads %q", got)
		}
	}
	for i := range 10 { // a directory that is listed again and again
		_ = list(t, mnt)
		put(t, filepath.Join(dir, fmt.Sprint("new", i)), "")
		time.Sleep(60 * time.Millisecond)
		if a, b := list(t, mnt), list(t, dir); a != b {
			t.Fatalf("the guest lists %s, the host %s", a, b)
		}
	}
	must(t, os.Remove(p))
	time.Sleep(60 * time.Millisecond)
	if _, err := os.Stat(filepath.Join(mnt, "f")); !os.IsNotExist(err) {
		t.Errorf("removed: %v", err)
	}
}

// TestParallel lets many processes of the guest work at once, with locks.
func TestParallel(t *testing.T) {
	mnt, dir := mounted(t, func(c *Config) { c.Locks = true })
	put(t, filepath.Join(dir, "count"), "0000")
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			sub := filepath.Join(mnt, fmt.Sprint("d", i))
			_ = os.Mkdir(sub, 0o755)
			for j := range 30 {
				f := filepath.Join(sub, fmt.Sprint("f", j))
				if err := os.WriteFile(f, bytes.Repeat([]byte{byte(i)}, 5000), 0o644); err != nil {
					t.Error(err)
				}
				if err := count(filepath.Join(mnt, "count")); err != nil {
					t.Error(err)
				}
				if b, err := os.ReadFile(f); err != nil || len(b) != 5000 || b[4999] != byte(i) {
					t.Errorf("%s: %d bytes, %v", f, len(b), err)
				}
			}
		}()
	}
	wg.Wait()
	if got := content(t, dir, "count"); got != "0180" {
		t.Errorf("counted %s", got)
	}
}

// count adds one to the number in a file, under a lock.
func count(path string) error {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLKW, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		return err
	}
	b := make([]byte, 4)
	if _, err := unix.Pread(fd, b, 0); err != nil {
		return err
	}
	n, err := strconv.Atoi(string(b))
	if err != nil {
		return err
	}
	_, err = unix.Pwrite(fd, fmt.Appendf(nil, "%04d", n+1), 0)
	return err
}
