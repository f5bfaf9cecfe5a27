// Package varlink is the varlink protocol (varlink.org): JSON objects, each
// ended by a NUL byte, over a Unix socket. systemd's services speak it, and a
// machine's control socket does.
package varlink

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// maxMessage bounds a message, in bytes. systemd's own limit is 16 MiB, but no
// message that we know is near that.
const maxMessage = 1 << 20

// Errors of org.varlink.service.
const (
	ErrMethodNotFound    = "org.varlink.service.MethodNotFound"
	ErrInterfaceNotFound = "org.varlink.service.InterfaceNotFound"
	ErrInvalidParameter  = "org.varlink.service.InvalidParameter"
	ErrPermissionDenied  = "org.varlink.service.PermissionDenied"
	ErrExpectedMore      = "org.varlink.service.ExpectedMore"
)

// Error is an error reply.
type Error struct {
	Name       string
	Parameters map[string]any
}

// Error returns the error's name and parameters.
func (e *Error) Error() string {
	if len(e.Parameters) == 0 {
		return e.Name
	}
	p, err := json.Marshal(e.Parameters)
	if err != nil {
		return e.Name
	}
	return e.Name + " " + string(p)
}

// call is a method call on the wire.
type call struct {
	Method     string          `json:"method"`
	Parameters json.RawMessage `json:"parameters,omitempty"`
	More       bool            `json:"more,omitempty"`
	Oneway     bool            `json:"oneway,omitempty"`
}

// reply is a reply on the wire.
type reply struct {
	Error      string          `json:"error,omitempty"`
	Parameters json.RawMessage `json:"parameters,omitempty"`
	Continues  bool            `json:"continues,omitempty"`
}

// errTooLong is a message over maxMessage.
var errTooLong = errors.New("varlink: message is too long")

// readMessage reads one message, without its NUL. At the end of the stream it
// returns io.EOF.
func readMessage(r *bufio.Reader) ([]byte, error) {
	var msg []byte
	for {
		part, err := r.ReadSlice(0)
		if len(msg)+len(part) > maxMessage {
			return nil, errTooLong
		}
		msg = append(msg, part...)
		switch {
		case err == nil:
			return msg[:len(msg)-1], nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(msg) > 0:
			return nil, io.ErrUnexpectedEOF
		default:
			return nil, err
		}
	}
}

// writeMessage writes v with a NUL.
func writeMessage(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("varlink: %w", err)
	}
	_, err = w.Write(append(b, 0))
	return err
}

// parameters encodes v, nil as the empty object.
func parameters(v any) (json.RawMessage, error) {
	if v == nil {
		return json.RawMessage("{}"), nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("varlink: %w", err)
	}
	return b, nil
}
