package gdb

import (
	"bufio"
	"errors"
	"io"
	"net"
	"sync"

	"github.com/gvmspawn/gvmspawn/vmm/mem"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// Mode is what a CPU does when the machine goes on.
type Mode uint8

const (
	// Hold keeps it where it is.
	Hold Mode = iota
	// Step lets it do one instruction, Run all of them.
	Step
	Run
)

// Target is a machine that is debugged. Its CPUs and registers are used only
// between Stop and Resume.
type Target interface {
	// CPUs is their number; CPU returns one, a vcpu.Debugger as well.
	CPUs() int
	CPU(i int) vcpu.VCPU
	Memory() *mem.Memory
	// Stop returns when all CPUs stand still, or with an error when the
	// machine has ended.
	Stop() error
	// Resume lets the CPUs go, each in its mode.
	Resume(modes []Mode)
	// Command does what a line of the debugger's "monitor" says, writes what
	// it has to say to w, and reports whether it knows that command.
	Command(line string, w io.Writer) (known bool, err error)
	// Kill ends the machine.
	Kill()
}

// event is a CPU's stop.
type event struct {
	cpu  int
	exit vcpu.Exit
}

// maxEvents is how many CPUs can stop at once without waiting for each other.
const maxEvents = 64

// Server serves one debugger after the other on a listener. It survives
// the machines that it is attached to, so that a debugger survives a reboot.
type Server struct {
	l      net.Listener
	events chan event
	ready  chan struct{} // closed at the first Attach or at Close
	done   chan struct{} // closed when serve has returned

	// mu guards what follows, and is held while target is used.
	mu      sync.Mutex
	target  Target // nil between two machines
	opened  bool   // ready is closed
	ses     *session
	closing bool
	status  int
}

// NewServer serves debuggers that connect to l until Close.
func NewServer(l net.Listener) *Server {
	s := &Server{l: l, events: make(chan event, maxEvents), ready: make(chan struct{}), done: make(chan struct{})}
	go s.serve()
	return s
}

// Close tells the debugger that the machine has ended with an exit status,
// 0 to 255, and closes the listener.
func (s *Server) Close(status int) error {
	s.mu.Lock()
	s.closing, s.status = true, status
	s.open()
	ses := s.ses
	s.mu.Unlock()
	err := s.l.Close()
	if ses != nil {
		ses.close()
	}
	<-s.done
	return err
}

// Attach gives the server a machine that is about to run, and reports whether
// its CPUs must be held until Resume. That is so for the first machine: it
// waits for a debugger.
func (s *Server) Attach(t Target) (hold bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.target = t
	hold = !s.opened
	s.open()
	if ses := s.ses; ses != nil {
		hold = hold || !ses.running
		ses.attached()
	}
	return hold
}

// open lets serve begin: a debugger that came too early waits for the machine.
// Preconditions: mu is held.
func (s *Server) open() {
	if !s.opened {
		s.opened = true
		close(s.ready)
	}
}

// Detach takes the machine away. Afterwards it is not used any more.
func (s *Server) Detach() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.target = nil
	for len(s.events) > 0 {
		<-s.events
	}
}

// Event tells of a CPU that has stopped with an exit, on its thread. It reports
// whether a debugger takes care of it: then the CPU must be held, and all others
// soon. It never blocks.
func (s *Server) Event(cpu int, exit vcpu.Exit) bool {
	select {
	case s.events <- event{cpu, exit}:
		return true
	default:
		return false
	}
}

// Connected reports whether there is a debugger.
func (s *Server) Connected() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ses != nil
}

// serve takes debuggers one after the other.
func (s *Server) serve() {
	defer close(s.done)
	<-s.ready
	for {
		c, err := s.l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			s.session(c)
		}
	}
}

// message is what the debugger sent: a packet, an interrupt or something bad.
type message struct {
	data []byte
	intr bool
	bad  bool
}

// session serves one debugger until it leaves.
func (s *Server) session(c net.Conn) {
	ses := newSession(s, c)
	if !ses.begin() {
		return
	}
	in := make(chan message)
	go ses.receive(in)
	for ses.alive {
		select {
		case m, ok := <-in:
			ses.take(m, ok)
		case e := <-s.events:
			s.mu.Lock()
			ses.stopped(e)
			s.mu.Unlock()
		}
	}
	ses.close()
	for range in { // until receive has seen that
	}
	s.mu.Lock()
	ses.end()
	s.ses = nil
	s.mu.Unlock()
}

// receive reads packets until the connection ends.
func (ses *session) receive(in chan<- message) {
	defer close(in)
	r := bufio.NewReader(ses.conn)
	for {
		data, intr, err := readPacket(r)
		bad := errors.Is(err, errBadPacket)
		if err != nil && !bad {
			return
		}
		in <- message{data, intr, bad}
	}
}
