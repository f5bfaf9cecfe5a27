package main

import (
	"fmt"
	"math/rand/v2"
	"runtime"

	"golang.org/x/sys/unix"
)

func in8(port uint16) uint8
func in32(port uint16) uint32
func out8(port uint16, v uint8)
func out32(port uint16, v uint32)

// ends are ports at which a write may rightly end or stop this guest: the keyboard
// controller's reset line, port A, the power registers, port 0xcf9, and the PCI
// configuration of the devices that it runs from.
func ends(port int) bool {
	switch {
	case port >= 0x5d && port <= 0x64, port >= 0x8f && port <= 0x92, port >= 0x57d && port <= 0x582, port >= 0x5fd && port <= 0x605, port >= 0xcf5 && port <= 0xcff:
		return true
	}
	return false
}

// last32 is the last port of a four-byte access: behind it is the byte of ones
// that ends the I/O permission bitmap, and the CPU refuses (SDM vol. 1 §19.5.2).
const last32 = 0xfffc

// ports reads and writes every port, a byte and four bytes wide.
func ports() error {
	runtime.LockOSThread()
	if _, _, e := unix.Syscall(unix.SYS_IOPL, 3, 0, 0); e != 0 {
		return fmt.Errorf("iopl: %w", e)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for p := range 1 << 16 {
		port := uint16(p)
		in8(port)
		if !ends(p) {
			out8(port, uint8(r.Uint32()))
		}
		if p <= last32 {
			in32(port)
			if !ends(p) {
				out32(port, r.Uint32())
			}
		}
	}
	if v := in32(0x5678); v != 0xffff_ffff {
		return fmt.Errorf("a port without a device reads %#x", v)
	}
	return nil
}
