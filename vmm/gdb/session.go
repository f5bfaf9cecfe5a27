package gdb

import (
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// writeTimeout is how long a debugger may leave a reply unread.
const writeTimeout = 5 * time.Second

// session is one debugger's connection. Server.mu is held for all but close.
type session struct {
	s    *Server
	conn net.Conn
	once sync.Once // closes conn

	alive bool
	noAck bool
	// swbreak and hwbreak: the debugger understands stop replies that say so.
	swbreak, hwbreak bool
	running          bool // the debugger waits for a stop
	modes            []Mode

	cpu      int // of registers and memory
	goCPU    int // of c and s; -1 for all
	physical bool
	reason   string // of the last stop, a stop reply

	points  []point
	patches []patch
}

func newSession(s *Server, c net.Conn) *session {
	return &session{s: s, conn: c, alive: true, goCPU: -1}
}

// begin stops the machine for the debugger. It returns false when the server
// closes.
func (ses *session) begin() bool {
	s := ses.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		_ = ses.conn.Close() // nothing was said yet
		return false
	}
	s.ses = ses
	if s.target != nil {
		_ = s.target.Stop() // of a machine that has just ended, Detach tells
	}
	ses.reason = ses.stopReply(sigTRAP, "")
	return true
}

// end lets the machine go on without a debugger, unless it has ended.
func (ses *session) end() {
	if ses.s.target == nil {
		return
	}
	_ = ses.s.target.Stop()
	ses.clear()
	ses.resume(nil)
}

// clear takes all breakpoints away.
func (ses *session) clear() {
	for len(ses.patches) > 0 {
		ses.unpatch(0)
	}
	ses.points = nil
	for i := range ses.s.target.CPUs() {
		if d := ses.debugger(i); d != nil {
			_ = d.SetDebug(nil) // the machine has ended, or it was possible before
		}
	}
}

func (ses *session) debugger(cpu int) vcpu.Debugger {
	d, _ := ses.s.target.CPU(cpu).(vcpu.Debugger)
	return d
}

// attached is told of a machine behind a reboot: breakpoints by address stay,
// those written to memory are gone with it.
func (ses *session) attached() {
	ses.patches = nil
	ses.cpu, ses.goCPU = 0, -1
	if ses.running {
		ses.modes = nil
		_ = ses.setDebug(nil)
	}
}

// close ends the connection. When the machine is over it says so before.
func (ses *session) close() {
	ses.once.Do(func() {
		ses.s.mu.Lock()
		if ses.s.closing {
			ses.send(fmt.Sprintf("W%02x", ses.s.status&0xff))
		}
		ses.s.mu.Unlock()
		ses.conn.Close()
	})
}

// take handles what the debugger sent; ok is false when it has gone.
func (ses *session) take(m message, ok bool) {
	ses.s.mu.Lock()
	defer ses.s.mu.Unlock()
	switch {
	case !ok:
		ses.alive = false
	case m.bad:
		ses.raw(nak)
	case m.intr:
		ses.interrupt()
	default:
		if !ses.noAck {
			ses.raw(ack)
		}
		if reply, ok := ses.request(string(m.data)); ok {
			ses.send(reply)
		}
	}
}

// raw sends one byte.
func (ses *session) raw(b byte) { ses.write([]byte{b}) }

// send sends a packet.
func (ses *session) send(data string) { ses.write(appendPacket(nil, data)) }

func (ses *session) write(b []byte) {
	_ = ses.conn.SetWriteDeadline(time.Now().Add(writeTimeout)) // nothing waits for a debugger that hangs
	if _, err := ses.conn.Write(b); err != nil {
		ses.alive = false
	}
}

// interrupt is the debugger's ^C.
func (ses *session) interrupt() {
	if !ses.running || ses.s.target == nil || ses.s.target.Stop() != nil {
		return
	}
	ses.report(2, "")
}

// stopped is told that a CPU has stopped by itself.
func (ses *session) stopped(e event) {
	t := ses.s.target
	if t == nil || t.Stop() != nil || !ses.running {
		return
	}
	signal, why := sigTRAP, ""
	switch {
	case e.exit.Reason != vcpu.ExitDebug:
		signal = sigSEGV
	case e.exit.Stop == vcpu.StopTrap && !ses.patched(e.exit.Address):
		ses.trap(e.cpu)
		return
	case e.exit.Stop != vcpu.StopStep:
		why = ses.breakReason(e.exit)
	}
	ses.cpu = e.cpu
	ses.report(signal, why)
}

// trap gives the guest the #BP that is its own, and lets the machine go on.
func (ses *session) trap(cpu int) {
	d := &vcpu.Debug{Points: ses.enginePoints(), Trap: true, Step: ses.mode(cpu) == Step}
	if ses.debugger(cpu).SetDebug(d) == nil {
		ses.s.target.Resume(ses.allModes())
	}
}

// Signals that GDB knows (Debugging with GDB, gdb/signals.def).
const (
	sigINT  = 2
	sigTRAP = 5
	sigSEGV = 11
)

// report sends a stop reply.
func (ses *session) report(signal int, why string) {
	ses.running = false
	ses.reason = ses.stopReply(signal, why)
	ses.send(ses.reason)
}

func (ses *session) stopReply(signal int, why string) string {
	return fmt.Sprintf("T%02x%sthread:%x;", signal, why, ses.cpu+1)
}

// mode is what CPU i does while the machine runs.
func (ses *session) mode(i int) Mode {
	if i < len(ses.modes) {
		return ses.modes[i]
	}
	return Run
}

func (ses *session) allModes() []Mode {
	modes := make([]Mode, ses.s.target.CPUs())
	for i := range modes {
		modes[i] = ses.mode(i)
	}
	return modes
}

// resume lets the CPUs go; nil modes are Run for all.
func (ses *session) resume(modes []Mode) {
	for len(ses.s.events) > 0 { // what else happened when the machine stopped
		<-ses.s.events
	}
	ses.modes = modes
	ses.running = true
	ses.s.target.Resume(ses.allModes())
}

// setDebug tells the CPUs what to stop for in modes.
func (ses *session) setDebug(modes []Mode) error {
	ses.modes = modes
	for i := range ses.s.target.CPUs() {
		d := ses.debugger(i)
		if d == nil || ses.mode(i) == Hold {
			continue
		}
		var want *vcpu.Debug
		if step := ses.mode(i) == Step; step || len(ses.points) > 0 || len(ses.patches) > 0 {
			want = &vcpu.Debug{Step: step, Points: ses.enginePoints()}
		}
		if err := d.SetDebug(want); err != nil {
			return err
		}
	}
	return nil
}
