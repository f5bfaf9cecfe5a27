package varlink

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Client is a connection to a service. It is used by one goroutine at a time.
type Client struct {
	c net.Conn
	r *bufio.Reader
}

// Dial connects to the service at the socket path.
func Dial(ctx context.Context, path string) (*Client, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	return NewClient(c), nil
}

// NewClient makes a client of a connection.
func NewClient(c net.Conn) *Client { return &Client{c, bufio.NewReader(c)} }

// Close ends the connection.
func (c *Client) Close() error { return c.c.Close() }

// Call calls a method and stores the reply's parameters in out, unless that is
// nil. An error reply is an *Error. If ctx ends before the reply has come, the
// connection can only be closed.
func (c *Client) Call(ctx context.Context, method string, in, out any) error {
	_, err := c.exchange(ctx, method, in, false, func(raw json.RawMessage) error { return decode(raw, out) })
	return err
}

// CallWithFile is Call with an open file beside the parameters, number 0.
func (c *Client) CallWithFile(ctx context.Context, method string, f *os.File, in, out any) error {
	u, ok := c.c.(*net.UnixConn)
	if !ok {
		return errors.New("varlink: files need a Unix socket")
	}
	p, err := parameters(in)
	if err != nil {
		return err
	}
	b, err := json.Marshal(call{Method: method, Parameters: p})
	if err != nil {
		return fmt.Errorf("varlink: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { c.c.SetDeadline(time.Unix(1, 0)) }) //nolint:errcheck // a closed connection fails anyway
	defer stop()
	if _, _, err := u.WriteMsgUnix(append(b, 0), unix.UnixRights(int(f.Fd())), nil); err != nil {
		return contextError(ctx, err)
	}
	_, err = c.receive(func(raw json.RawMessage) error { return decode(raw, out) })
	return contextError(ctx, err)
}

// CallMore calls a method that replies many times, and calls f for each reply
// until it returns an error or the last reply has come.
func (c *Client) CallMore(ctx context.Context, method string, in any, f func(json.RawMessage) error) error {
	more, err := c.exchange(ctx, method, in, true, f)
	for more && err == nil {
		more, err = c.receive(f)
	}
	return err
}

func (c *Client) exchange(ctx context.Context, method string, in any, more bool, f func(json.RawMessage) error) (bool, error) {
	p, err := parameters(in)
	if err != nil {
		return false, err
	}
	stop := context.AfterFunc(ctx, func() { c.c.SetDeadline(time.Unix(1, 0)) }) //nolint:errcheck // a closed connection fails anyway
	defer stop()
	if err := writeMessage(c.c, call{Method: method, Parameters: p, More: more}); err != nil {
		return false, contextError(ctx, err)
	}
	continues, err := c.receive(f)
	return continues, contextError(ctx, err)
}

// contextError says that ctx ended, if that is why err happened.
func contextError(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func (c *Client) receive(f func(json.RawMessage) error) (continues bool, err error) {
	msg, err := readMessage(c.r)
	if err != nil {
		return false, err
	}
	var r reply
	if err := json.Unmarshal(msg, &r); err != nil {
		return false, fmt.Errorf("varlink: %w", err)
	}
	if r.Error != "" {
		e := &Error{Name: r.Error}
		decode(r.Parameters, &e.Parameters) //nolint:errcheck // the name says enough
		return false, e
	}
	return r.Continues, f(r.Parameters)
}

func decode(raw json.RawMessage, out any) error {
	if out == nil || len(raw) == 0 {
		return nil
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return fmt.Errorf("varlink: %w", err)
	}
	return nil
}
