package main

import (
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"encoding/binary"
	"go/parser"
	"go/printer"
	"go/token"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	_ "embed"
)

// computeJobs are work for the CPU alone, all of it code that a Go compiler has
// made but for the inner loop of SHA-256.
func computeJobs(a arguments) error {
	rounds := a.number("compute", 16)
	block := make([]byte, 1<<20)
	start := time.Now()
	for range rounds {
		sum := sha256.Sum256(block)
		copy(block, sum[:])
	}
	rate("sha256", float64(rounds), start)
	start = time.Now()
	n := 0
	for range rounds {
		n += sieve(1 << 20)
	}
	rate("sieve", float64(n), start)
	sortJob(rounds)
	if err := deflateJob(rounds); err != nil {
		return err
	}
	floatJob(rounds)
	interpretJob(rounds)
	return parseJob(rounds)
}

// sieve counts the primes below n.
func sieve(n int) int {
	composite := make([]bool, n)
	count := 0
	for i := 2; i < n; i++ {
		if composite[i] {
			continue
		}
		count++
		for j := i * i; j < n; j += i {
			composite[j] = true
		}
	}
	return count
}

// sortJob sorts random numbers: branches that cannot be foreseen.
func sortJob(rounds int) {
	const n = 1 << 16
	rng := rand.New(rand.NewPCG(1, 2))
	list := make([]uint64, n)
	start := time.Now()
	for range rounds {
		for i := range list {
			list[i] = rng.Uint64()
		}
		slices.Sort(list)
	}
	rate("sort", float64(n*rounds), start)
}

// deflateJob compresses text of a kind and expands it again.
func deflateJob(rounds int) error {
	rng := rand.New(rand.NewPCG(3, 4))
	var text []byte
	for len(text) < 256<<10 {
		text = append(text, bytes.Fields(source)[rng.IntN(100)]...)
		text = append(text, ' ')
	}
	start := time.Now()
	var out bytes.Buffer
	for range max(rounds/4, 1) {
		out.Reset()
		w, err := flate.NewWriter(&out, 6)
		if err != nil {
			return err
		}
		if _, err := w.Write(text); err != nil {
			return err
		}
		if err := w.Close(); err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, flate.NewReader(&out)); err != nil {
			return err
		}
	}
	rate("deflate", float64(max(rounds/4, 1)*len(text))/(1<<20), start)
	return nil
}

// floatJob multiplies matrices of 64-bit floating point numbers.
func floatJob(rounds int) {
	const n = 96
	var a, b, c [n][n]float64
	for i := range n {
		for j := range n {
			a[i][j], b[i][j] = float64(i+j)/n, float64(i-j)/n
		}
	}
	start := time.Now()
	for range rounds {
		for i := range n {
			for j := range n {
				sum := 0.0
				for k := range n {
					sum += a[i][k] * b[k][j]
				}
				c[i][j] = sum
			}
		}
		a[0][0] = c[1][1] / n
	}
	rate("float", float64(2*n*n*n*rounds)/1e6, start)
}

// interpretJob runs a program for a small machine: a switch in a loop, calls
// through a table and a map.
func interpretJob(rounds int) {
	const steps = 1 << 18
	ops := []func(x, y uint64) uint64{
		func(x, y uint64) uint64 { return x + y },
		func(x, y uint64) uint64 { return x ^ y<<7 },
		func(x, y uint64) uint64 { return x*31 + y },
		func(x, y uint64) uint64 { return x>>1 | y<<63 },
	}
	seen := map[uint64]int{}
	var stack [64]uint64
	h := fnv.New64a()
	x, sp := uint64(1), 0
	start := time.Now()
	for range rounds {
		for range steps {
			switch x % 7 {
			case 0:
				stack[sp&63] = x
				sp++
			case 1:
				sp--
				x ^= stack[sp&63]
			case 2:
				seen[x&1023]++
			case 3:
				x = x<<13 | x>>51
			case 4:
				x -= uint64(sp)
			}
			x = ops[x>>5&3](x, stack[x>>9&63]) + 0x9e3779b97f4a7c15
		}
		_ = binary.Write(h, binary.LittleEndian, x)
	}
	rate("interpret", float64(steps*rounds)/1e6, start)
}

//go:embed compute.go
var source []byte

// parseJob is what a compiler's front end does: this file is read, parsed and
// printed. The first times it is mostly new code for the VMM.
func parseJob(rounds int) error {
	rounds *= 8
	start := time.Now()
	for range rounds {
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, "compute.go", source, parser.ParseComments)
		if err != nil {
			return err
		}
		if err := printer.Fprint(io.Discard, set, f); err != nil {
			return err
		}
	}
	rate("parse", float64(len(source)*rounds)/(1<<10), start)
	return nil
}
