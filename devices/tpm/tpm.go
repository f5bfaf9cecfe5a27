// Package tpm is the register side of a TPM 2.0: the FIFO interface ([TIS]) and
// the command response buffer ([CRB]) of the TCG PC Client Platform TPM Profile
// (PTP) 1.05 over a [Backend] that executes the commands (TPM 2.0 Library 1.59).
//
// Interrupts are optional there and absent here: drivers poll. So is a dynamic
// launch: tpmEstablishment always says that there was none, and locality 4, the
// launch hardware's, ignores software.
//
// A command may take seconds. It runs in the chip's goroutine, never on a CPU's
// thread; what the guest does meanwhile is a register access like any other.
package tpm

import (
	"encoding/binary"
	"sync"
	"time"
)

// Backend executes TPM commands. A chip calls Init once, before all else, and
// Execute from one goroutine.
type Backend interface {
	// Init is _TPM_Init, what power-on and reset are to a TPM. No command or
	// response is longer than bufferSize bytes from then on.
	Init(bufferSize int) error
	// Execute runs one command, at most bufferSize bytes with a header that
	// tells its true size, at a locality, 0 to 4, and returns the size of the
	// response that it put into the buffer of bufferSize bytes.
	Execute(locality int, command, response []byte) (int, error)
	// Cancel asks a running Execute to end early. It does not block, and does
	// nothing if none runs.
	Cancel()
}

// bufferSize is the most that a command or response of either chip has, in bytes.
const bufferSize = 4096

// closeTime is how long Close waits for a command to end.
const closeTime = 10 * time.Second

// engine runs commands one at a time in its goroutine.
type engine struct {
	backend Backend
	limit   int // of commands and responses, in bytes
	start   chan request
	ended   chan struct{}
	// done is called with mu held when the backend is: with the response, or
	// with a stale one that nobody wants any more.
	done func(stale bool)

	mu       sync.Mutex // guards all of a chip, but not the buffers while busy
	busy     bool       // the backend works
	stale    bool       // and nobody wants its response any more
	command  [bufferSize]byte
	response [bufferSize]byte
	size     int // of the response
}

type request struct{ locality, size int }

// open initialises the backend and starts the goroutine.
func (e *engine) open(b Backend, limit int, done func(stale bool)) error {
	if err := b.Init(limit); err != nil {
		return err
	}
	e.backend, e.limit, e.done = b, limit, done
	e.start, e.ended = make(chan request, 1), make(chan struct{})
	go e.run()
	return nil
}

func (e *engine) run() {
	defer close(e.ended)
	for r := range e.start {
		n, err := e.backend.Execute(r.locality, e.command[:r.size], e.response[:e.limit])
		if err != nil || !complete(e.response[:e.limit], n) {
			n = putError(e.response[:], tpmRCFailure)
		}
		e.mu.Lock()
		e.busy, e.size = false, n
		stale := e.stale
		e.stale = false
		e.done(stale)
		e.mu.Unlock()
	}
}

// execute starts a command of n bytes, whose header may lie about it; done is
// called later, or at once if the command cannot be one.
// Preconditions: mu is held, busy is false.
func (e *engine) execute(locality, n int) {
	if n < headerSize || !complete(e.command[:], n) {
		e.size = putError(e.response[:], tpmRCCommandSize)
		e.done(false)
		return
	}
	e.busy = true
	e.start <- request{locality, n} // there is room: busy was false
}

// cancel asks a running command to end; its response will be there.
// Preconditions: mu is held.
func (e *engine) cancel() {
	if e.busy {
		e.backend.Cancel()
	}
}

// abandon is cancel, but the response is dropped.
// Preconditions: mu is held.
func (e *engine) abandon() {
	if e.busy && !e.stale {
		e.stale = true
		e.backend.Cancel()
	}
}

// Close waits until the backend has ended its work, for a bounded time. No
// CPU accesses the chip any more. The backend stays open.
func (e *engine) Close() error {
	e.mu.Lock()
	e.abandon()
	e.mu.Unlock()
	close(e.start)
	select {
	case <-e.ended:
	case <-time.After(closeTime): // the backend hangs; its owner will end it
	}
	return nil
}

// complete reports whether the first n bytes of b are all of a command or response.
func complete(b []byte, n int) bool {
	return n >= headerSize && n <= len(b) && binary.BigEndian.Uint32(b[2:]) == uint32(n)
}

// commandSize is the size that the header of a command tells.
func commandSize(b []byte) uint32 { return binary.BigEndian.Uint32(b[2:]) }

// putError writes a response that is only a code, and returns its size.
func putError(b []byte, rc uint32) int {
	binary.BigEndian.PutUint16(b, tpmSTNoSessions)
	binary.BigEndian.PutUint32(b[2:], headerSize)
	binary.BigEndian.PutUint32(b[6:], rc)
	return headerSize
}
