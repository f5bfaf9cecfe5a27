// Package tpmtest drives a TPM's registers as an operating system does, and
// stands in for the TPM behind them.
package tpmtest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// timeout is how long a driver waits for a register to change: creating an RSA
// key takes seconds.
const timeout = time.Minute

// Registers that the drivers use (PTP).
const (
	access     = 0x00
	sts        = 0x18
	dataFIFO   = 0x24
	locCtrl    = 0x08
	locSts     = 0x0c
	ctrlReq    = 0x40
	ctrlStart  = 0x4c
	data       = 0x80
	dataEnd    = 0x1000
	headerSize = 10
)

// Driver sends commands to a TPM. It is a go-tpm transport by Send, and an
// io.ReadWriteCloser whose Write executes a command and whose Read gives its
// response.
type Driver struct {
	chip     bus.Device
	page     uint64
	send     func(command []byte) ([]byte, error)
	release  func()
	response []byte
}

// Send executes a command and returns its response.
func (d *Driver) Send(command []byte) ([]byte, error) { return d.send(command) }

// Write executes a command.
func (d *Driver) Write(command []byte) (n int, err error) {
	d.response, err = d.send(command)
	return len(command), err
}

// Read gives what is left of the last response.
func (d *Driver) Read(p []byte) (int, error) {
	if len(d.response) == 0 {
		return 0, io.EOF
	}
	n := copy(p, d.response)
	d.response = d.response[n:]
	return n, nil
}

// Close lets go of the locality.
func (d *Driver) Close() error {
	d.release()
	return nil
}

func (d *Driver) get(reg uint64, size int) uint64    { return d.chip.Read(d.page+reg, size) }
func (d *Driver) set(reg uint64, size int, v uint64) { d.chip.Write(d.page+reg, size, v) }

// wait waits until the register has these bits in the mask.
func (d *Driver) wait(reg uint64, mask, want uint64) error {
	for end := time.Now().Add(timeout); ; {
		v := d.get(reg, 4)
		if v&mask == want {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("register %#x is %#x, not %#x in %#x", reg, v, want, mask)
		}
		time.Sleep(20 * time.Microsecond)
	}
}

// NewTIS takes a locality of a FIFO interface.
func NewTIS(chip bus.Device, locality int) (*Driver, error) {
	d := &Driver{chip: chip, page: uint64(locality) << 12}
	d.send, d.release = d.sendTIS, func() { d.set(access, 1, 0x20) }
	d.set(access, 1, 0x02)
	return d, d.wait(access, 0xa0, 0xa0)
}

func (d *Driver) sendTIS(command []byte) ([]byte, error) {
	d.set(sts, 1, 0x40)
	if err := d.wait(sts, 0x40, 0x40); err != nil {
		return nil, err
	}
	for i, b := range command {
		if d.get(sts+1, 2) == 0 {
			return nil, errors.New("no room for the command")
		}
		d.set(dataFIFO, 1, uint64(b))
		if expect := d.get(sts, 1)&0x08 != 0; expect != (i < len(command)-1) {
			return nil, fmt.Errorf("after byte %d of %d Expect is %v", i, len(command), expect)
		}
	}
	d.set(sts, 1, 0x20)
	if err := d.wait(sts, 0x90, 0x90); err != nil {
		return nil, err
	}
	var response []byte
	for d.get(sts, 1)&0x10 != 0 {
		response = append(response, byte(d.get(dataFIFO, 1)))
	}
	d.set(sts, 1, 0x40)
	return response, nil
}

// NewCRB takes a locality of a command response buffer.
func NewCRB(chip bus.Device, locality int) (*Driver, error) {
	d := &Driver{chip: chip, page: uint64(locality) << 12}
	d.send, d.release = d.sendCRB, func() { d.set(locCtrl, 4, 2) }
	d.set(locCtrl, 4, 1)
	return d, d.wait(locSts, 1, 1)
}

func (d *Driver) sendCRB(command []byte) ([]byte, error) {
	d.set(ctrlReq, 4, 1)
	if err := d.wait(ctrlReq, 1, 0); err != nil {
		return nil, err
	}
	if len(command) > dataEnd-data {
		return nil, errors.New("the command is too long")
	}
	for i, b := range command {
		d.set(data+uint64(i), 1, uint64(b))
	}
	d.set(ctrlStart, 4, 1)
	if err := d.wait(ctrlStart, 1, 0); err != nil {
		return nil, err
	}
	response := d.bytes(headerSize)
	size := binary.BigEndian.Uint32(response[2:])
	if size < headerSize || size > dataEnd-data {
		return nil, fmt.Errorf("a response of %d bytes", size)
	}
	response = d.bytes(int(size))
	d.set(ctrlReq, 4, 2)
	return response, nil
}

// bytes reads the data buffer.
func (d *Driver) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(d.get(data+uint64(i), 1))
	}
	return b
}

// Backend answers commands by a function, and remembers what was asked of it.
type Backend struct {
	// Answer gives the response; nil answers every command with success.
	Answer func(locality int, command []byte) ([]byte, error)
	// Cancelled gets a value for each Cancel, if there is room.
	Cancelled chan struct{}
	// BufferSize is what Init was given.
	BufferSize int
}

// NewBackend returns one that answers by a function.
func NewBackend(answer func(locality int, command []byte) ([]byte, error)) *Backend {
	return &Backend{Answer: answer, Cancelled: make(chan struct{}, 1)}
}

// Success is a response without parameters.
var Success = []byte{0x80, 1, 0, 0, 0, headerSize, 0, 0, 0, 0}

// Init implements tpm.Backend.
func (b *Backend) Init(bufferSize int) error { b.BufferSize = bufferSize; return nil }

// Execute implements tpm.Backend.
func (b *Backend) Execute(locality int, command, response []byte) (int, error) {
	if b.Answer == nil {
		return copy(response, Success), nil
	}
	r, err := b.Answer(locality, command)
	return copy(response, r), err
}

// Cancel implements tpm.Backend.
func (b *Backend) Cancel() {
	select {
	case b.Cancelled <- struct{}{}:
	default:
	}
}
