package main

import (
	"bytes"
	"crypto/sha256"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// An idle guest is watched for idleFor, after what a kernel still does after its
// boot is over.
const (
	settleFor = 6 * time.Second
	idleFor   = 7 * time.Second
)

// idle sleeps, and reports the interrupts a second that woke the guest.
func idle(arguments) error {
	sleep(settleFor)
	before, err := interrupts()
	if err != nil {
		return err
	}
	start := time.Now()
	sleep(idleFor)
	after, err := interrupts()
	if err != nil {
		return err
	}
	rate("guest-interrupts", after-before, start)
	return nil
}

// sleep is one system call, without the Go runtime's timers.
func sleep(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	for unix.Nanosleep(&ts, &ts) == unix.EINTR {
	}
}

// interrupts is the sum of /proc/interrupts over all lines and CPUs.
func interrupts() (float64, error) {
	data, err := os.ReadFile("/proc/interrupts")
	if err != nil {
		return 0, err
	}
	sum := 0.0
	for i, line := range bytes.Split(data, []byte("\n")) {
		fields := bytes.Fields(line)
		if i == 0 || len(fields) < 2 {
			continue
		}
		if n, err := strconv.ParseFloat(string(fields[1]), 64); err == nil {
			sum += n
		}
	}
	return sum, nil
}

// computeJobs are work for the CPU alone.
func computeJobs(a arguments) error {
	block := make([]byte, 1<<20)
	start, mib := time.Now(), a.number("compute", 16)
	for range mib {
		sum := sha256.Sum256(block)
		copy(block, sum[:])
	}
	rate("sha256", float64(mib), start)

	start = time.Now()
	n := sieve(1 << 20)
	rate("sieve", float64(n), start)
	return nil
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
