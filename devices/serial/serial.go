// Package serial is a 16550A UART with a PC's wiring (National Semiconductor
// PC16550D, June 1995).
//
// Bytes have no duration: the transmitter hands each byte on at once. If the
// host takes no more, the byte stays in the transmitter FIFO and THRE stays
// off, which is how the guest's driver learns to wait. So a slow host neither
// blocks a CPU nor makes anything grow. Input flows the same way: the chip
// takes what its FIFO holds and asks for more when the guest has read it.
// Baud rate, word length and parity are remembered and have no effect.
package serial

import (
	"sync"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// Sink takes the bytes that the guest sends. The chip calls it with its lock
// held: it must not block and not call the chip.
type Sink interface {
	// Put takes b, or returns false if there is no room now. After a refusal
	// the owner calls [UART.Flush] once there is room.
	Put(b byte) bool
}

// UART is the chip: eight byte registers. It implements bus.Device.
type UART struct {
	line  bus.Line
	sink  Sink
	ready func()

	mu      sync.Mutex // guards all below, held while line and sink are called
	ier     ier
	fcr     fcr
	lcr     lcr
	mcr     mcr
	lsrErrs lsr // OE, until LSR is read
	msr     msr
	scratch uint8
	divisor uint16
	rx      fifo
	tx      fifo
	thre    bool // the THRE interrupt waits to be seen
	level   bool // what line was last set to
}

// New returns a UART after reset. ready is called, with the lock held and so
// without calling the chip or blocking, when there is room for input again
// after Receive or Break took less than it was given.
func New(line bus.Line, sink Sink, ready func()) *UART {
	u := &UART{line: line, sink: sink, ready: ready}
	u.Reset()
	return u
}

// Reset is the master reset (§4, table I). Bytes in the FIFOs are lost.
func (u *UART) Reset() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.ier, u.fcr, u.lcr, u.mcr, u.lsrErrs = 0, 0, 0, 0, 0
	u.msr = msrCTS | msrDSR | msrDCD
	u.scratch, u.divisor, u.thre = 0, 12, false
	u.tx.clear()
	u.clearRX()
	u.update()
}

// Read implements bus.Device.
func (u *UART) Read(off uint64, size int) uint64 { return bus.ReadBytes(u, off, size) }

// Write implements bus.Device.
func (u *UART) Write(off uint64, size int, v uint64) { bus.WriteBytes(u, off, size, v) }

// ReadByteAt reads the register off; there are eight.
func (u *UART) ReadByteAt(off uint64) uint8 {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch off {
	case regData:
		if u.lcr&lcrDLAB != 0 {
			return uint8(u.divisor)
		}
		return u.readData()
	case regIER:
		if u.lcr&lcrDLAB != 0 {
			return uint8(u.divisor >> 8)
		}
		return uint8(u.ier)
	case regIIR:
		return u.readIIR()
	case regLCR:
		return uint8(u.lcr)
	case regMCR:
		return uint8(u.mcr)
	case regLSR:
		v := u.lsr()
		u.lsrErrs = 0
		u.rx.takeFlag()
		u.update()
		return uint8(v)
	case regMSR:
		v := u.msr
		u.msr &^= msrDeltas
		u.update()
		return uint8(v)
	case regSCR:
		return u.scratch
	}
	return 0xff
}

// WriteByteAt writes the register off; there are eight.
func (u *UART) WriteByteAt(off uint64, v uint8) {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch off {
	case regData:
		if u.lcr&lcrDLAB != 0 {
			u.divisor = u.divisor&0xff00 | uint16(v)
			return
		}
		u.send(v)
	case regIER:
		if u.lcr&lcrDLAB != 0 {
			u.divisor = u.divisor&0xff | uint16(v)<<8
			return
		}
		u.writeIER(ier(v) & ierMask)
	case regIIR:
		u.writeFCR(fcr(v))
	case regLCR:
		u.lcr = lcr(v)
	case regMCR:
		u.writeMCR(mcr(v) & mcrMask)
	case regSCR:
		u.scratch = v
	}
	u.update() // LSR and MSR are for factory tests only
}

// readData pops the receiver buffer.
func (u *UART) readData() uint8 {
	b, _ := u.rx.pop()
	u.update()
	u.wantInput()
	return b
}

// wantInput asks for more input once a refusal is over. The FIFO is first
// read empty, so that the host is asked once for many bytes.
func (u *UART) wantInput() {
	if u.rx.refused && u.rx.n == 0 && u.mcr&mcrLoop == 0 {
		u.rx.refused = false
		if u.ready != nil {
			u.ready()
		}
	}
}

func (u *UART) clearRX() {
	u.rx.clear()
	u.wantInput()
}

// limit is how many bytes a FIFO takes now: without FIFO mode one register.
func (u *UART) limit() int {
	if u.fcr&fcrEnable != 0 {
		return fifoSize
	}
	return 1
}

// send takes a byte from the guest.
func (u *UART) send(b uint8) {
	u.thre = false // table IV: writing THR resets the interrupt
	if u.mcr&mcrLoop != 0 {
		u.loop(b)
		return
	}
	if u.tx.n == 0 && u.sink.Put(b) {
		u.thre = true
		return
	}
	// A guest that writes without asking for THRE loses bytes, as on wire.
	if u.tx.n < u.limit() {
		u.tx.push(b, 0)
	}
}

// loop is the transmitter wired to the receiver (§8.8, bit 4).
func (u *UART) loop(b uint8) {
	u.thre = true
	switch {
	case u.rx.n < u.limit():
		u.rx.push(b, 0)
	case u.fcr&fcrEnable == 0:
		u.rx.clear() // the register is overwritten
		u.rx.push(b, 0)
		fallthrough
	default:
		u.lsrErrs |= lsrOE
	}
}

// Flush hands the bytes that wait in the transmitter to the sink. The sink's
// owner calls it when there is room after a refusal.
func (u *UART) Flush() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for u.tx.n > 0 && u.sink.Put(u.tx.first()) {
		u.tx.pop()
		u.thre = u.tx.n == 0 || u.thre
	}
	u.update()
}

// Receive gives bytes from the host and returns how many were taken, 0 to
// len(p). If not all were, the chip calls ready when there is room again.
func (u *UART) Receive(p []byte) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := 0
	for n < len(p) && u.takeInput(p[n], 0) {
		n++
	}
	u.update()
	return n
}

// Break gives the break condition from the host (SysRq on Linux). It reports
// false, like Receive, if there was no room.
func (u *UART) Break() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	ok := u.takeInput(0, lsrBI)
	u.update()
	return ok
}

// takeInput pushes a byte from the host. In loopback the receiver is
// disconnected from the wire.
func (u *UART) takeInput(b byte, flag lsr) bool {
	if u.mcr&mcrLoop != 0 || u.rx.n >= u.limit() {
		u.rx.refused = true
		return false
	}
	u.rx.push(b, flag)
	return true
}

func (u *UART) writeIER(v ier) {
	// §8.6: enabling the interrupt while THR is empty raises it.
	if v&ierETBEI != 0 && u.ier&ierETBEI == 0 && u.tx.n == 0 {
		u.thre = true
	}
	u.ier = v
}

func (u *UART) writeFCR(v fcr) {
	// §8.5: bit 0 must be set for the others to be programmed, and changing it
	// clears both FIFOs.
	toggled := (v^u.fcr)&fcrEnable != 0
	if toggled || v&(fcrEnable|fcrClearRX) == fcrEnable|fcrClearRX {
		u.clearRX()
	}
	if toggled || v&(fcrEnable|fcrClearTX) == fcrEnable|fcrClearTX {
		u.thre = u.thre || u.tx.n > 0
		u.tx.clear()
	}
	u.fcr = v &^ (fcrClearRX | fcrClearTX)
	if v&fcrEnable == 0 {
		u.fcr = 0
	}
}

func (u *UART) writeMCR(v mcr) {
	u.mcr = v
	// §8.8: in loopback the four outputs are the four inputs.
	in := msrCTS | msrDSR | msrDCD
	if v&mcrLoop != 0 {
		in = 0
		for _, w := range [...]struct {
			out mcr
			in  msr
		}{{mcrRTS, msrCTS}, {mcrDTR, msrDSR}, {mcrOUT1, msrRI}, {mcrOUT2, msrDCD}} {
			if v&w.out != 0 {
				in |= w.in
			}
		}
	}
	changed := (u.msr ^ in) & ^msrDeltas
	// Delta bits sit four below their inputs; RI counts its trailing edge only.
	delta := changed >> 4
	if in&msrRI != 0 {
		delta &^= msrTERI
	}
	u.msr = in | u.msr&msrDeltas | delta
	u.wantInput()
}

// lsr is the Line Status Register as read.
func (u *UART) lsr() lsr {
	v := u.lsrErrs
	if u.rx.n > 0 {
		v |= lsrDR | u.rx.firstFlag()
	}
	if u.fcr&fcrEnable != 0 && u.rx.flags > 0 {
		v |= lsrErr
	}
	if u.tx.n == 0 {
		v |= lsrTHRE | lsrTEMT
	}
	return v
}

// pending is the interrupt with the highest priority (table IV).
func (u *UART) pending() iir {
	fifo := u.fcr&fcrEnable != 0
	switch {
	case u.ier&ierELSI != 0 && u.lsr()&(lsrOE|lsrBI) != 0:
		return iirLine
	case u.ier&ierERBFI != 0 && u.rx.n > 0:
		if fifo && u.rx.n < triggers[u.fcr>>6] {
			// The time-out of four characters is over at once: nothing
			// says that more is coming.
			return iirTimeout
		}
		return iirData
	case u.ier&ierETBEI != 0 && u.thre:
		return iirTHRE
	case u.ier&ierEDSSI != 0 && u.msr&msrDeltas != 0:
		return iirModem
	}
	return iirNone
}

// readIIR reads the interrupt, which resets it if it is THRE (table IV).
func (u *UART) readIIR() uint8 {
	v := u.pending()
	if v == iirTHRE {
		u.thre = false
		u.update()
	}
	if u.fcr&fcrEnable != 0 {
		v |= iirFIFO
	}
	return uint8(v)
}

// update drives the interrupt line. A PC gates it with OUT2, which loopback
// holds inactive.
func (u *UART) update() {
	level := u.pending() != iirNone && u.mcr&(mcrOUT2|mcrLoop) == mcrOUT2
	if level != u.level {
		u.level = level
		u.line.Set(level)
	}
}
