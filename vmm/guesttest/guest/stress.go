package main

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
)

const (
	stressWriters = 6
	stressFiles   = 40
)

// stress is what unpacking an archive is for a file system, by several writers
// at once: directories, files of all sizes, modes, renames and removals. Each
// writer then reads back what it wrote, while the others still write.
func stress(dir string) {
	var wg sync.WaitGroup
	errs := make([]error, stressWriters+1)
	for w := range stressWriters {
		wg.Go(func() { errs[w] = writer(dir, uint64(w)) })
	}
	wg.Go(func() { errs[stressWriters] = shared(filepath.Join(dir, "shared")) })
	wg.Wait()
	check("stress", errors.Join(errs...))
}

func writer(dir string, seed uint64) error {
	r := rand.New(rand.NewPCG(seed, 1))
	own := filepath.Join(dir, fmt.Sprintf("w%d", seed))
	sums := map[string]uint32{}
	for i := range stressFiles {
		sub := filepath.Join(own, fmt.Sprint(r.IntN(5)), fmt.Sprint(r.IntN(3)))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return err
		}
		data := make([]byte, r.IntN(1<<uint(4+r.IntN(14))))
		for j := range data {
			data[j] = byte(r.Uint32())
		}
		name := filepath.Join(sub, fmt.Sprint(i))
		if err := os.WriteFile(name+".new", data, os.FileMode(0o600|r.IntN(0o200))); err != nil {
			return err
		}
		if err := os.Rename(name+".new", name); err != nil {
			return err
		}
		sums[name] = crc32.ChecksumIEEE(data)
		if err := verify(r, sums); err != nil {
			return err
		}
	}
	return nil
}

// verify reads one of the files back, and removes one in five.
func verify(r *rand.Rand, sums map[string]uint32) error {
	for name, want := range sums {
		got, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if crc32.ChecksumIEEE(got) != want {
			return fmt.Errorf("%s is not what was written", name)
		}
		if r.IntN(5) == 0 {
			delete(sums, name)
			return os.Remove(name)
		}
		return nil
	}
	return nil
}

// shared is one file that several writers write, each its own blocks.
func shared(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	const writers, blocks, size = 4, 16, 5000
	var wg sync.WaitGroup
	errs := make([]error, writers)
	for w := range writers {
		wg.Go(func() {
			for b := range blocks {
				_, err := f.WriteAt(bytes.Repeat([]byte{byte(w*blocks + b)}, size), int64((b*writers+w)*size))
				errs[w] = errors.Join(errs[w], err)
			}
		})
	}
	wg.Wait()
	got, err := os.ReadFile(path)
	if err != nil || len(got) != writers*blocks*size {
		return fmt.Errorf("%s: %d bytes, %w", path, len(got), err)
	}
	for i, v := range got {
		block := i / size
		if want := byte(block%writers*blocks + block/writers); v != want {
			return fmt.Errorf("%s: byte %d is %d, want %d", path, i, v, want)
		}
	}
	return errors.Join(errs...)
}
