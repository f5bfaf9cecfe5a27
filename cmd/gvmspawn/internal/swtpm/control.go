package swtpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// answerTime is how long swtpm may take for an answer on its control channel.
var answerTime = 20 * time.Second

// command is a command of the control channel (swtpm_ioctls(3); numbers from
// swtpm's include/swtpm/tpm_ioctl.h). Everything is big-endian; an answer
// begins with a TPM result code, but CMD_GET_CAPABILITY's is a mask.
type command uint32

const (
	cmdGetCapability command = 1
	cmdInit          command = 2
	cmdShutdown      command = 3
	cmdSetLocality   command = 5
	cmdCancelTPMCmd  command = 9
	cmdStop          command = 14
	cmdSetDataFD     command = 16
	cmdSetBufferSize command = 17
)

func (c command) String() string {
	switch c {
	case cmdGetCapability:
		return "CMD_GET_CAPABILITY"
	case cmdInit:
		return "CMD_INIT"
	case cmdShutdown:
		return "CMD_SHUTDOWN"
	case cmdSetLocality:
		return "CMD_SET_LOCALITY"
	case cmdCancelTPMCmd:
		return "CMD_CANCEL_TPM_CMD"
	case cmdStop:
		return "CMD_STOP"
	case cmdSetDataFD:
		return "CMD_SET_DATAFD"
	case cmdSetBufferSize:
		return "CMD_SET_BUFFERSIZE"
	}
	return fmt.Sprintf("command %d", uint32(c))
}

// Capabilities, the bits of CMD_GET_CAPABILITY's answer.
const (
	capInit          = 1 << 0
	capShutdown      = 1 << 1
	capSetLocality   = 1 << 3
	capStop          = 1 << 10
	capSetDataFD     = 1 << 12
	capSetBufferSize = 1 << 13

	neededCapabilities = capInit | capShutdown | capSetLocality | capStop | capSetDataFD | capSetBufferSize
)

var errBusy = errors.New("swtpm does not answer")

// control is the control channel. One command is under way at a time.
type control struct {
	conn *net.UnixConn
	turn chan struct{} // holds a value while nobody has the channel
}

func newControl(c *net.UnixConn) *control {
	ctl := &control{conn: c, turn: make(chan struct{}, 1)}
	ctl.turn <- struct{}{}
	return ctl
}

// take waits for the channel, for a bounded time.
func take(turn chan struct{}) error {
	select {
	case <-turn:
		return nil
	case <-time.After(answerTime):
		return errBusy
	}
}

// call sends a command with its request and returns the rest of the answer
// after the result code.
func (c *control) call(cmd command, request []byte, rest int) ([]byte, error) {
	if err := take(c.turn); err != nil {
		return nil, err
	}
	defer func() { c.turn <- struct{}{} }()
	if err := c.conn.SetDeadline(time.Now().Add(answerTime)); err != nil {
		return nil, err
	}
	answer, err := c.exchange(cmd, request, nil, 4+rest)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", cmd, err)
	}
	if rc := binary.BigEndian.Uint32(answer); rc != 0 {
		return nil, fmt.Errorf("%v: swtpm answers with error %#x", cmd, rc)
	}
	return answer[4:], nil
}

// exchange writes one message, with a descriptor perhaps, and reads n bytes.
func (c *control) exchange(cmd command, request []byte, fd *os.File, n int) ([]byte, error) {
	message := append(binary.BigEndian.AppendUint32(nil, uint32(cmd)), request...)
	var rights []byte
	if fd != nil {
		rights = unix.UnixRights(int(fd.Fd()))
	}
	if _, _, err := c.conn.WriteMsgUnix(message, rights, nil); err != nil {
		return nil, ended(err)
	}
	answer := make([]byte, n)
	_, err := io.ReadFull(c.conn, answer)
	return answer, ended(err)
}

// ended says in words what an error of a socket means.
func ended(err error) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET):
		return errors.New("swtpm has ended")
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errBusy
	}
	return err
}

// open checks the capabilities and hands over the channel for TPM commands.
func (c *control) open(data *os.File) error {
	if err := c.conn.SetDeadline(time.Now().Add(answerTime)); err != nil {
		return err
	}
	answer, err := c.exchange(cmdGetCapability, nil, nil, 8)
	if err != nil {
		return fmt.Errorf("%v: %w", cmdGetCapability, err)
	}
	if missing := neededCapabilities &^ binary.BigEndian.Uint64(answer); missing != 0 {
		return fmt.Errorf("this swtpm is too old: it lacks the capabilities %#x", missing)
	}
	answer, err = c.exchange(cmdSetDataFD, nil, data, 4)
	if err == nil && binary.BigEndian.Uint32(answer) != 0 {
		err = fmt.Errorf("swtpm answers with error %#x", binary.BigEndian.Uint32(answer))
	}
	if err != nil {
		return fmt.Errorf("%v: %w", cmdSetDataFD, err)
	}
	return nil
}

// init is _TPM_Init, with a size of buffers.
func (c *control) init(bufferSize int) error {
	if _, err := c.call(cmdStop, nil, 0); err != nil {
		return err
	}
	if _, err := c.call(cmdSetBufferSize, binary.BigEndian.AppendUint32(nil, uint32(bufferSize)), 12); err != nil {
		return err
	}
	_, err := c.call(cmdInit, make([]byte, 4), 0)
	return err
}

// cancel asks for the end of a command, in its own time: swtpm may answer only
// when the command has ended.
func (c *control) cancel() {
	select {
	case <-c.turn:
	default:
		return // a command of ours, or another cancel, is under way
	}
	go func() {
		defer func() { c.turn <- struct{}{} }()
		if c.conn.SetDeadline(time.Time{}) == nil {
			c.exchange(cmdCancelTPMCmd, nil, nil, 4) //nolint:errcheck // a dead swtpm shows elsewhere
		}
	}()
}
