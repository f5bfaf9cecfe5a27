package qcow2

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/disk"
)

const (
	crashImage   = "GVMSPAWN_QCOW2_CRASH_IMAGE" // set in the child: the image to write
	crashSeed    = "GVMSPAWN_QCOW2_CRASH_SEED"
	crashSectors = 8 << 10
)

// crashOp is operation i of a seed: a range of sectors that gets the number i,
// or 0 if it is discarded.
func crashOp(r *rand.Rand, i uint64) (first, n int, value uint64) {
	first = r.IntN(crashSectors)
	n = min(1+r.IntN(256), crashSectors-first)
	if r.IntN(8) == 0 {
		return first, n, 0
	}
	return first, n, i
}

// TestCrashChild is the child of TestCrash: it writes until it is killed, and
// tells after which operation a flush has returned.
func TestCrashChild(t *testing.T) {
	path := os.Getenv(crashImage)
	if path == "" {
		t.Skip("only as a child of TestCrash")
	}
	m := openImage(t, path)
	var seed uint64
	_, _ = fmt.Sscan(os.Getenv(crashSeed), &seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for i := uint64(1); ; i++ {
		first, n, value := crashOp(r, i)
		var err error
		off, size := uint64(first)*disk.SectorSize, uint64(n)*disk.SectorSize
		if value == 0 {
			err = m.WriteZeroes(off, size, true)
		} else {
			b := make([]byte, size)
			for p := b; len(p) > 0; p = p[8:] {
				binary.LittleEndian.PutUint64(p, value)
			}
			err = m.WriteAt([][]byte{b}, off)
		}
		if err == nil && i%10 == 0 {
			err = m.Flush()
			fmt.Printf("flushed %d\n", i)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// After kill -9 in the middle of writes the image is sound and no acknowledged
// flush is lost.
func TestCrash(t *testing.T) {
	for _, o := range []string{"cluster_size=64k", "cluster_size=512", "compat=0.10,cluster_size=4096"} {
		for seed := range uint64(3) {
			if testing.Short() && seed != 1 {
				continue
			}
			path := filepath.Join(t.TempDir(), "disk.qcow2")
			qemuImg(t, "create", "-q", "-f", "qcow2", "-o", o, path, fmt.Sprint(crashSectors*disk.SectorSize))
			flushed := crash(t, path, seed)
			out, err := exec.Command("qemu-img", "check", "-f", "qcow2", path).CombinedOutput()
			var exit *exec.ExitError
			// Status 3 is clusters counted but not used: see the package comment.
			if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 3) {
				t.Fatalf("%s: %v\n%s", o, err, out)
			}
			verify(t, path, seed, flushed)
		}
	}
}

// crash runs a child on the image, kills it after some flushes, and returns the
// last operation that was acknowledged.
func crash(t *testing.T, path string, seed uint64) uint64 {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestCrashChild$", "-test.v")
	cmd.Env = append(os.Environ(), crashImage+"="+path, fmt.Sprintf("%s=%d", crashSeed, seed))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	flushed, lines := uint64(0), 5+20*seed
	for s := bufio.NewScanner(out); s.Scan(); {
		if _, err := fmt.Sscanf(s.Text(), "flushed %d", &flushed); err != nil {
			continue
		}
		if lines--; lines == 0 {
			time.AfterFunc(time.Duration(seed)*700*time.Microsecond, func() { _ = cmd.Process.Kill() })
		}
	}
	_ = cmd.Wait()
	if flushed == 0 {
		t.Fatal("the child did nothing")
	}
	return flushed
}

// verify checks that each sector has what the last acknowledged operation put
// there, or what a later one did.
func verify(t *testing.T, path string, seed, flushed uint64) {
	t.Helper()
	m := openImage(t, path)
	defer m.Close()
	got := make([]byte, crashSectors*disk.SectorSize)
	if err := m.ReadAt([][]byte{got}, 0); err != nil {
		t.Fatal(err)
	}
	allowed := make([]map[uint64]bool, crashSectors)
	for s := range allowed {
		allowed[s] = map[uint64]bool{0: true}
	}
	r := rand.New(rand.NewPCG(seed, 0))
	for i := uint64(1); i <= flushed+1000; i++ {
		first, n, value := crashOp(r, i)
		for s := first; s < first+n; s++ {
			if i <= flushed {
				clear(allowed[s])
			}
			allowed[s][value] = true
		}
	}
	for s := range allowed {
		for p := got[s*disk.SectorSize : (s+1)*disk.SectorSize]; len(p) > 0; p = p[8:] {
			if v := binary.LittleEndian.Uint64(p); !allowed[s][v] {
				t.Fatalf("sector %d holds %d after %d were flushed; allowed: %v", s, v, flushed, allowed[s])
			}
		}
	}
}
