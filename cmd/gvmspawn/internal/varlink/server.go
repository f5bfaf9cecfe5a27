package varlink

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"sort"
	"strings"
	"sync"
	"time"
)

// Bounds of a server, so that no client can use the program up.
const (
	maxConnections = 64
	maxStrangers   = 8 // of Trusted's others
	writeTimeout   = 10 * time.Second
)

// Handler serves a method. It returns the parameters of the (last) reply, or
// an *Error to be sent; any other error ends the connection.
type Handler func(ctx context.Context, c *Call) (any, error)

// Call is a method call being served.
type Call struct {
	parameters json.RawMessage
	more       bool
	write      func(reply) error
	files      []*os.File // that came with the call; nil for those that were taken
}

// TakeFile is the i-th file that came with the call, once, or nil. The caller
// closes it.
func (c *Call) TakeFile(i int) *os.File {
	if i < 0 || i >= len(c.files) {
		return nil
	}
	f := c.files[i]
	c.files[i] = nil
	return f
}

// Parameters decodes the call's parameters strictly. Its error is to be returned.
func (c *Call) Parameters(v any) error {
	if len(c.parameters) == 0 || bytes.Equal(c.parameters, []byte("null")) {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(c.parameters))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		name := "parameters"
		if _, after, found := strings.Cut(err.Error(), "unknown field "); found {
			name = strings.Trim(after, `"`)
		}
		return &Error{ErrInvalidParameter, map[string]any{"parameter": name}}
	}
	return nil
}

// More reports whether the caller takes several replies.
func (c *Call) More() bool { return c.more }

// Continue sends a reply that others will follow.
func (c *Call) Continue(v any) error {
	p, err := parameters(v)
	if err != nil {
		return err
	}
	return c.write(reply{Parameters: p, Continues: true})
}

// Server serves methods to everyone who may connect.
type Server struct {
	Product, Version string
	// Interfaces maps names to their description in varlink's language.
	Interfaces map[string]string
	// Methods maps "INTERFACE.METHOD" to what serves it.
	Methods map[string]Handler
	// Allow, if not nil, decides about each connection.
	Allow func(net.Conn) bool
	// Trusted, if not nil, tells whose connections do not share their places
	// with the others'.
	Trusted func(net.Conn) bool

	once              sync.Once
	places, strangers chan struct{}
}

// Serve accepts connections until l is closed, and returns when the last one
// has ended; ctx ends them.
func (s *Server) Serve(ctx context.Context, l net.Listener) {
	s.once.Do(func() { s.places, s.strangers = make(chan struct{}, maxConnections), make(chan struct{}, maxStrangers) })
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		places := s.places
		if s.Trusted != nil && !s.Trusted(c) {
			places = s.strangers
		}
		select {
		case places <- struct{}{}:
		default:
			c.Close() // too many
			continue
		}
		wg.Go(func() {
			defer func() { <-places }()
			s.serve(ctx, c)
		})
	}
}

// serve answers the calls of one connection, one after the other.
func (s *Server) serve(ctx context.Context, c net.Conn) {
	defer c.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	allowed := s.Allow == nil || s.Allow(c)
	messages := make(chan message)
	go func() { // reading on notices a caller that goes away during a call
		defer cancel()
		from := &fileReader{c: c}
		defer from.close()
		r := bufio.NewReader(from)
		for {
			msg, err := readMessage(r)
			if err != nil {
				return
			}
			select {
			case messages <- message{msg, from.take()}:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case m := <-messages:
			ok := s.answer(ctx, c, m, allowed)
			closeFiles(m.files)
			if !ok {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// answer serves one call and reports whether the connection can go on.
func (s *Server) answer(ctx context.Context, c net.Conn, m message, allowed bool) bool {
	var in call
	if err := json.Unmarshal(m.bytes, &in); err != nil {
		return false
	}
	write := func(r reply) error {
		if in.Oneway {
			return nil
		}
		if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
			return err
		}
		return writeMessage(c, r)
	}
	result, err := s.dispatch(ctx, &Call{in.Parameters, in.More, write, m.files}, in.Method, allowed)
	var e *Error
	if errors.As(err, &e) {
		p, err := parameters(e.Parameters)
		if e.Parameters == nil {
			p, err = parameters(nil)
		}
		return err == nil && write(reply{Error: e.Name, Parameters: p}) == nil
	}
	if err != nil {
		return false
	}
	p, err := parameters(result)
	return err == nil && write(reply{Parameters: p}) == nil
}

func (s *Server) dispatch(ctx context.Context, c *Call, method string, allowed bool) (any, error) {
	if !allowed {
		return nil, &Error{ErrPermissionDenied, nil}
	}
	switch method {
	case "org.varlink.service.GetInfo":
		names := []string{"org.varlink.service"}
		for n := range s.Interfaces {
			names = append(names, n)
		}
		sort.Strings(names)
		return map[string]any{"vendor": "gvmspawn", "product": s.Product, "version": s.Version, "url": "https://github.com/gvmspawn/gvmspawn", "interfaces": names}, nil
	case "org.varlink.service.GetInterfaceDescription":
		var in struct {
			Interface string `json:"interface"`
		}
		if err := c.Parameters(&in); err != nil {
			return nil, err
		}
		d, ok := s.Interfaces[in.Interface]
		if in.Interface == "org.varlink.service" {
			d, ok = serviceDescription, true
		}
		if !ok {
			return nil, &Error{ErrInterfaceNotFound, map[string]any{"interface": in.Interface}}
		}
		return map[string]any{"description": d}, nil
	}
	if h, ok := s.Methods[method]; ok {
		return h(ctx, c)
	}
	iface := method[:max(strings.LastIndexByte(method, '.'), 0)]
	if _, ok := s.Interfaces[iface]; ok {
		return nil, &Error{ErrMethodNotFound, map[string]any{"method": method}}
	}
	return nil, &Error{ErrInterfaceNotFound, map[string]any{"interface": iface}}
}

// serviceDescription is the interface that every varlink service has.
const serviceDescription = `interface org.varlink.service

method GetInfo() -> (vendor: string, product: string, version: string, url: string, interfaces: []string)
method GetInterfaceDescription(interface: string) -> (description: string)

error InterfaceNotFound (interface: string)
error MethodNotFound (method: string)
error MethodNotImplemented (method: string)
error InvalidParameter (parameter: string)
error PermissionDenied ()
error ExpectedMore ()
`
