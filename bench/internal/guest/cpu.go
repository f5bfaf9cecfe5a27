package main

import (
	"bytes"
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
