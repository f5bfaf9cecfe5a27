// Package pflash is a NOR flash chip with the Common Flash Interface and
// Intel's command set, in which firmware keeps its variables: reads give the
// content, writes are commands. Documents: JEDEC JESD68.01 (CFI), JEP137 (the
// command set IDs); Intel "Common Flash Interface and Command Sets", AP-646,
// for the commands.
//
// Two things differ from a chip of silicon, as in QEMU's, for which OVMF was
// written: CLEAR STATUS clears the ready bit as well, by which OVMF tells flash
// from RAM and ROM, and programming replaces a byte instead of clearing bits.
// Everything is ready at once.
//
// # What survives
//
// Every change goes to the backing file in the order in which the guest made
// it. Bytes programmed one behind the other are written together, at the latest
// with the guest's next other command. A process that is killed leaves what a
// power failure would leave of a chip: a beginning of what the guest had
// written, which the firmware's fault-tolerant write repairs.
package pflash

import (
	"fmt"
	"io"
	"sync"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// BlockSize is the size of an erase block in bytes.
const BlockSize = 4096

// bufferSize is the size of the write buffer in bytes.
const bufferSize = 256

// directAfter is how many reads of the content in a row make the chip show
// itself to the guest directly; before that it may soon be written again.
const directAfter = 512

// Config is what a chip is made of.
type Config struct {
	// Content is the chip's memory, a multiple of BlockSize.
	Content []byte
	// File takes every change at its offset; nil keeps none.
	File io.WriterAt
	// Direct, if not nil, makes guest reads go to Content directly (true, the
	// state at the beginning) or to the chip (false). Writes come to
	// the chip always. It is called on the CPU's thread.
	Direct func(on bool)
	// Failed, if not nil, is told of the first change that File did not take.
	Failed func(error)
}

// Flash is the chip. It implements bus.Device.
type Flash struct {
	cfg Config

	mu      sync.Mutex // guards all below, held while cfg's functions are called
	mode    command    // what a read gives, or what the next writes belong to
	cycle   int        // of the command
	status  status
	direct  bool
	reads   int // of the content, in a row
	runAt   int // programmed bytes that File does not have yet
	runLen  int
	buffer  [bufferSize]byte
	bufAt   int // where in Content the buffer goes
	bufLen  int
	failure bool
}

// New returns a chip that shows its content.
func New(cfg Config) (*Flash, error) {
	if len(cfg.Content) == 0 || len(cfg.Content)%BlockSize != 0 {
		return nil, fmt.Errorf("flash of %d bytes is not possible: it has whole blocks of %d KiB", len(cfg.Content), BlockSize>>10)
	}
	return &Flash{cfg: cfg, direct: cfg.Direct != nil}, nil
}

// Read implements bus.Device.
func (f *Flash) Read(off uint64, size int) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	var v uint64
	for i := range size {
		v |= uint64(f.readByte(int(off)+i)) << (8 * i)
	}
	if f.mode == cmdReadArray {
		f.reads++
		if f.reads >= directAfter {
			f.show(true)
		}
	}
	return v
}

// ReadOnly is the chip without its commands: its content, which is not written.
// CPUs that may not write it get this.
func (f *Flash) ReadOnly() bus.Device { return content{f} }

type content struct{ f *Flash }

// Read implements bus.Device.
func (c content) Read(off uint64, size int) uint64 {
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	var v uint64
	for i := range size {
		v |= uint64(c.f.cfg.Content[int(off)+i]) << (8 * i)
	}
	return v
}

// Write implements bus.Device: nothing.
func (c content) Write(uint64, int, uint64) {}

func (f *Flash) readByte(off int) byte {
	switch f.mode {
	case cmdReadArray:
		return f.cfg.Content[off]
	case cmdReadID:
		return readID(off)
	case cmdReadCFI:
		return cfi(off, len(f.cfg.Content))
	}
	return byte(f.status)
}

// show makes the guest's reads go to the content, or to the chip.
//
// Preconditions: f.mu is held.
func (f *Flash) show(on bool) {
	f.reads = 0
	if f.cfg.Direct != nil && f.direct != on {
		f.direct = on
		f.cfg.Direct(on)
	}
}

// Write implements bus.Device: a command, or what belongs to one. The lowest
// byte is the command, as on chips that stand side by side on a wider bus.
func (f *Flash) Write(off uint64, size int, v uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reads = 0
	if f.cycle == 0 {
		f.begin(int(off), command(v))
	} else {
		f.proceed(int(off), size, v)
	}
	if f.mode != cmdReadArray {
		f.show(false)
	}
}

// begin is the first write of a command.
func (f *Flash) begin(off int, c command) {
	if c != cmdProgram && c != cmdProgramAlternate {
		f.flush()
	}
	switch c {
	case cmdProgram, cmdProgramAlternate, cmdErase, cmdLock:
		f.mode, f.cycle = c, 1
	case cmdBuffer:
		// The block must be told before its status is asked.
		f.mode, f.cycle, f.bufLen = c, 1, 0
		f.status |= statusReady
	case cmdClearStatus:
		f.status = 0
		f.mode = cmdReadArray
	case cmdReadStatus, cmdReadID, cmdReadCFI:
		f.mode = c
	default:
		f.mode = cmdReadArray // 0xff, and what is no command
	}
}

// proceed is a further write of a command.
func (f *Flash) proceed(off, size int, v uint64) {
	switch f.mode {
	case cmdProgram, cmdProgramAlternate:
		f.program(off, size, v)
		f.done()
	case cmdErase:
		f.confirm(command(v), func() { f.erase(off) })
	case cmdLock:
		if c := command(v); c == cmdLockSet || c == cmdConfirm {
			f.done() // nothing is ever locked
		} else {
			f.abandon()
		}
	case cmdBuffer:
		f.fill(off, size, v)
	}
}

// confirm ends a command that wants a second write to say so.
func (f *Flash) confirm(c command, act func()) {
	if c != cmdConfirm {
		f.abandon()
		return
	}
	act()
	f.done()
}

// done ends a command; reads give its status.
func (f *Flash) done() {
	f.cycle = 0
	f.status |= statusReady
}

// abandon ends a command that was not confirmed.
func (f *Flash) abandon() {
	f.cycle, f.mode = 0, cmdReadArray
}

// fill is the write buffer: the number of writes less one, the writes, the
// confirmation. Writes outside the buffer's part of the chip spoil it.
func (f *Flash) fill(off, size int, v uint64) {
	const counted, writing = 1, 2
	switch {
	case f.cycle == counted:
		f.bufAt = off &^ (bufferSize - 1)
		f.bufLen = int(v&0xff) + 1
		copy(f.buffer[:], f.cfg.Content[f.bufAt:f.bufAt+bufferSize])
		f.cycle = writing
	case f.bufLen > 0:
		f.bufLen--
		for i := range size {
			at := off + i - f.bufAt
			if at < 0 || at >= bufferSize {
				f.status |= statusProgramError
				f.cycle = 0
				return
			}
			f.buffer[at] = byte(v >> (8 * i))
		}
	default:
		f.confirm(command(v), func() {
			copy(f.cfg.Content[f.bufAt:], f.buffer[:])
			f.save(f.bufAt, bufferSize, statusProgramError)
		})
	}
}

// program puts bytes into the chip, and joins them with those before.
func (f *Flash) program(off, size int, v uint64) {
	if f.runLen > 0 && (off != f.runAt+f.runLen || f.runLen >= BlockSize) {
		f.flush()
	}
	if f.runLen == 0 {
		f.runAt = off
	}
	for i := range size {
		f.cfg.Content[off+i] = byte(v >> (8 * i))
	}
	f.runLen += size
}

// erase makes a block all ones.
func (f *Flash) erase(off int) {
	off &^= BlockSize - 1
	block := f.cfg.Content[off : off+BlockSize]
	for i := range block {
		block[i] = 0xff
	}
	f.save(off, BlockSize, statusEraseError)
}

// flush gives the file what was programmed.
func (f *Flash) flush() {
	if n := f.runLen; n > 0 {
		f.runLen = 0
		f.save(f.runAt, n, statusProgramError)
	}
}

// save writes a part of the content to the file. A guest whose changes are lost
// finds that in the status.
func (f *Flash) save(off, n int, lost status) {
	if f.cfg.File == nil {
		return
	}
	_, err := f.cfg.File.WriteAt(f.cfg.Content[off:off+n], int64(off))
	if err == nil {
		return
	}
	f.status |= lost
	if !f.failure && f.cfg.Failed != nil {
		f.failure = true
		f.cfg.Failed(err)
	}
}

// Close gives the file what it does not have yet. No CPU runs.
func (f *Flash) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.flush()
	return nil
}
