package main

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
)

// truncated maps a file that is full of ones, says "MAPPED" when all its pages are
// there, and waits until the host has truncated it: then they must read as
// zeroes, without a signal.
func truncated(name string) (err error) {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	debug.SetPanicOnFault(true)
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("the mapping faults: %v", v)
		}
	}()
	for at := 0; at < len(b); at += 4096 {
		if b[at] != '1' {
			return fmt.Errorf("byte %d is %q at first", at, b[at])
		}
	}
	fmt.Println("MAPPED")
	for range 600 {
		for at := 0; at < len(b); at += 4096 {
			if b[at] == 0 {
				return nil
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	return errors.New("nobody truncated the file")
}
