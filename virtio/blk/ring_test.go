package blk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/virtio/virtiotest"
	"github.com/gvmspawn/gvmspawn/virtio/virtq/virtqtest"
	"github.com/gvmspawn/gvmspawn/vmm/disk"
	"github.com/gvmspawn/gvmspawn/vmm/disk/disktest"
)

// coldImage is a raw image of which nothing is in the page cache.
type coldImage struct {
	*disk.Raw
	path string
}

func cold(t testing.TB, size int, o disk.Options) (coldImage, []byte) {
	t.Helper()
	img, data := coldImage{path: filepath.Join(t.TempDir(), "disk.raw")}, disktest.Random(size)
	if err := os.WriteFile(img.path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	if img.Raw, err = disk.OpenRaw(img.path, o); err != nil {
		t.Skip(err) // a file system without direct I/O
	}
	img.chill(t)
	return img, data
}

func (i coldImage) chill(t testing.TB) {
	t.Helper()
	f, err := os.Open(i.path)
	if err == nil {
		err = errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Reads of a cold file, writes and flushes, many at a time, by either engine.
func TestEngines(t *testing.T) {
	for _, engine := range []disk.Engine{disk.EnginePool, disk.EngineURing} {
		img, want := cold(t, 4<<20, disk.Options{})
		d := newDevice(t, img.Raw, func(c *setup) { c.disk.Engine = engine })
		m := virtiotest.New(t, d, virtiotest.Options{EventIdx: true, Indirect: true})
		r := rand.New(rand.NewPCG(8, 8))
		for round := range 10 {
			q := m.Queue[0]
			reads := map[uint16]uint64{}
			for i := range 100 {
				sector := uint64(r.IntN(8192 - 16))
				reads[q.Add([][]byte{head(VIRTIO_BLK_T_IN, sector)}, []int{1000, 7192, 1})] = sector
				if i%10 == 0 {
					q.Add([][]byte{head(VIRTIO_BLK_T_FLUSH, 0)}, []int{1})
				}
			}
			q.Kick()
			for q.InFlight() > 0 {
				u := q.Wait()
				sector, read := reads[u.ID]
				if status(u) != VIRTIO_BLK_S_OK {
					t.Fatalf("status %d", status(u))
				}
				if read && !bytes.Equal(u.Bytes()[:8192], want[sector<<9:sector<<9+8192]) {
					t.Fatalf("sector %d differs", sector)
				}
			}
			// The other way round, and a reset with requests in flight.
			for i := range 20 {
				data := bytes.Repeat([]byte{byte(round), byte(i)}, 2048)
				copy(want[i*8192:], data)
				q.Add([][]byte{head(VIRTIO_BLK_T_OUT, uint64(i*16)), data}, []int{1})
			}
			q.Kick()
			for q.InFlight() > 0 {
				q.Wait()
			}
			img.chill(t)
			for i := range 50 {
				q.Add([][]byte{head(VIRTIO_BLK_T_IN, uint64(i*100))}, []int{4096, 1})
			}
			q.Kick()
			m.Reset()
			if err := m.Activate(); err != nil {
				t.Fatal(err)
			}
		}
		m.Reset()
		_ = d.Close()
	}
}

// BenchmarkCold reads 4 KiB pieces of a cold file, 32 at a time.
func BenchmarkCold(b *testing.B) {
	const size, depth = 256 << 20, 32
	for _, c := range []struct {
		name   string
		engine disk.Engine
		direct bool
	}{{"pool", disk.EnginePool, false}, {"io_uring", disk.EngineURing, false}, {"pool direct", disk.EnginePool, true}, {"io_uring direct", disk.EngineURing, true}} {
		b.Run(c.name, func(b *testing.B) {
			img, _ := cold(b, size, disk.Options{Direct: c.direct})
			m := virtiotest.New(b, newDevice(b, img.Raw, func(s *setup) { s.disk.Engine = c.engine }), virtiotest.Options{})
			s := m.Queue[0].Split
			var heads [depth][]byte
			for i := range depth {
				for j, d := range read4K(m) {
					if j == 0 {
						heads[i] = m.Mem.Bytes(d.Addr, 16)
					}
					if j < 2 {
						d.Flags |= virtqtest.DescNext
						d.Next = uint16(3*i + j + 1)
					}
					s.SetDesc(3*i+j, d)
				}
			}
			idx, n := uint16(0), 0
			r := rand.New(rand.NewPCG(1, 1))
			b.ResetTimer()
			for b.Loop() {
				if n++; n%1024 == 0 {
					b.StopTimer()
					img.chill(b)
					b.StartTimer()
				}
				for i := range uint16(depth) {
					binary.LittleEndian.PutUint64(heads[i][8:], uint64(r.IntN(size/4096))*8)
					s.SetAvail(idx+i, 3*i)
				}
				idx += depth
				s.SetAvailIdx(idx)
				m.Queue[0].Bell.Ring()
				for s.UsedIdx() != idx {
					time.Sleep(5 * time.Microsecond)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/depth, "ns/request")
		})
	}
}
