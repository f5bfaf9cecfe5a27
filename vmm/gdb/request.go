package gdb

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// Replies. Error numbers are Linux errno values, for people.
const (
	replyOK    = "OK"
	replyNo    = "" // not supported
	replyInval = "E16"
	replyFault = "E0e"
	replyBusy  = "E10"
	replySpace = "E1c"
)

// parseHex reads a number of at most 64 bits.
func parseHex(s string) (uint64, error) { return strconv.ParseUint(s, 16, 64) }

// request answers a packet. ok is false if there is no reply, or not yet.
func (ses *session) request(p string) (reply string, ok bool) {
	if p == "" {
		return replyNo, true
	}
	args := p[1:]
	switch p[0] {
	case 'q', 'Q':
		return ses.query(p), true
	case 'k':
		ses.kill()
		return "", false
	case 'D':
		ses.alive = false
		return replyOK, true
	case 'v':
		return ses.verbose(p)
	}
	if ses.s.target == nil || ses.running {
		return replyBusy, true
	}
	switch p[0] {
	case '?':
		return ses.reason, true
	case 'c', 'C', 's', 'S':
		return ses.proceed(p[0])
	case 'g':
		return ses.readRegisters(), true
	case 'G':
		return ses.writeRegisters(args), true
	case 'p':
		return ses.readRegister(args), true
	case 'P':
		return ses.writeRegister(args), true
	case 'm':
		return ses.readMemory(args), true
	case 'M', 'X':
		return ses.writeMemory(args, p[0] == 'X'), true
	case 'H':
		return ses.setThread(args), true
	case 'T':
		_, err := ses.thread(args)
		return result(err), true
	case 'Z', 'z':
		return ses.breakpoint(p[0] == 'Z', args), true
	}
	return replyNo, true
}

// result is the reply OK, or what is wrong.
func result(err error) string {
	switch {
	case err == nil:
		return replyOK
	case errors.Is(err, errUnsupported):
		return replyNo
	case errors.Is(err, errNoMemory):
		return replyFault
	case errors.Is(err, vcpu.ErrTooManyPoints):
		return replySpace
	}
	return replyInval
}

// kill ends the machine.
func (ses *session) kill() {
	ses.alive = false
	if ses.s.target != nil {
		ses.s.target.Kill()
	}
}

// verbose answers v packets.
func (ses *session) verbose(p string) (string, bool) {
	switch {
	case p == "vCont?":
		return "vCont;c;C;s;S;t", true
	case strings.HasPrefix(p, "vKill"):
		ses.send(replyOK)
		ses.kill()
		return "", false
	case strings.HasPrefix(p, "vCont;"):
		if ses.s.target == nil || ses.running {
			return replyBusy, true
		}
		return ses.vCont(strings.Split(p[len("vCont;"):], ";"))
	}
	return replyNo, true
}

// vCont lets each CPU do the first action that names it.
func (ses *session) vCont(actions []string) (string, bool) {
	modes := make([]Mode, ses.s.target.CPUs())
	done := make([]bool, len(modes))
	for _, a := range actions {
		what, id, named := strings.Cut(a, ":")
		mode, ok := map[byte]Mode{'c': Run, 'C': Run, 's': Step, 'S': Step, 't': Hold}[(what + "?")[0]]
		if !ok {
			return replyInval, true
		}
		only := -1
		if named {
			n, err := ses.thread(id)
			if err != nil {
				return replyInval, true
			}
			only = n
		}
		for i := range modes {
			if !done[i] && (only < 0 || only == i) {
				modes[i], done[i] = mode, true
			}
		}
	}
	return ses.goOn(modes)
}

// proceed is c, C, s and S: the CPU of Hc, or for c all of them.
func (ses *session) proceed(what byte) (string, bool) {
	modes := make([]Mode, ses.s.target.CPUs())
	step := what == 's' || what == 'S'
	for i := range modes {
		switch {
		case step && (i == ses.goCPU || ses.goCPU < 0 && i == ses.cpu):
			modes[i] = Step
		case !step && (ses.goCPU < 0 || i == ses.goCPU):
			modes[i] = Run
		}
	}
	return ses.goOn(modes)
}

// goOn lets the machine run; the reply is that of its next stop.
func (ses *session) goOn(modes []Mode) (string, bool) {
	if err := ses.setDebug(modes); err != nil {
		return result(err), true
	}
	ses.resume(modes)
	return "", false
}

// thread reads a thread's number; -1 for all or any.
func (ses *session) thread(id string) (cpu int, err error) {
	n, err := strconv.ParseInt(id, 16, 32)
	if err != nil || n < -1 || n > int64(ses.s.target.CPUs()) {
		return 0, fmt.Errorf("no thread %q", id)
	}
	if n <= 0 {
		return -1, nil
	}
	return int(n) - 1, nil
}

func (ses *session) setThread(args string) string {
	if args == "" {
		return replyInval
	}
	n, err := ses.thread(args[1:])
	if err != nil {
		return replyInval
	}
	switch args[0] {
	case 'g':
		if n >= 0 {
			ses.cpu = n
		}
	case 'c':
		ses.goCPU = n
	default:
		return replyInval
	}
	return replyOK
}

// file reads the registers of the present CPU.
func (ses *session) file() (*file, error) {
	f := new(file)
	if err := ses.s.target.CPU(ses.cpu).Registers(&f.regs); err != nil {
		return nil, err
	}
	if d := ses.debugger(ses.cpu); d != nil {
		if err := d.FPU(&f.fpu); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// store writes back what differs from before.
func (ses *session) store(f, before *file) string {
	var err error
	if f.regs != before.regs {
		err = ses.s.target.CPU(ses.cpu).SetRegisters(&f.regs)
	}
	if d := ses.debugger(ses.cpu); err == nil && d != nil && f.fpu != before.fpu {
		err = d.SetFPU(&f.fpu)
	}
	return result(err)
}

func (ses *session) readRegisters() string {
	f, err := ses.file()
	if err != nil {
		return replyInval
	}
	return f.all()
}

func (ses *session) writeRegisters(args string) string {
	b, err := hex.DecodeString(args)
	f, ferr := ses.file()
	if err != nil || ferr != nil {
		return replyInval
	}
	before := *f
	if !f.setAll(b) {
		return replyInval
	}
	return ses.store(f, &before)
}

func (ses *session) readRegister(args string) string {
	n, err := parseHex(args)
	f, ferr := ses.file()
	if err != nil || ferr != nil || n >= uint64(len(registers)) {
		return replyInval
	}
	return hex.EncodeToString(registers[n].bytes(f))
}

func (ses *session) writeRegister(args string) string {
	num, val, _ := strings.Cut(args, "=")
	n, err := parseHex(num)
	b, herr := hex.DecodeString(val)
	f, ferr := ses.file()
	if err != nil || herr != nil || ferr != nil || n >= uint64(len(registers)) || len(b) != registers[n].bits/8 {
		return replyInval
	}
	before := *f
	r := &registers[n]
	if !r.wide && r.set == nil {
		return replyInval // a selector without its descriptor makes no sense
	}
	r.setBytes(f, b)
	return ses.store(f, &before)
}

// space is memory as the present CPU sees it.
func (ses *session) space() (*space, error) {
	var regs vcpu.Registers
	if err := ses.s.target.CPU(ses.cpu).Registers(&regs); err != nil {
		return nil, err
	}
	return &space{ses.s.target.Memory(), &regs, ses.physical}, nil
}

// addressAndLength reads "addr,length".
func addressAndLength(s string) (addr, n uint64, err error) {
	a, l, ok := strings.Cut(s, ",")
	if !ok {
		return 0, 0, errors.New("no length")
	}
	if addr, err = parseHex(a); err != nil {
		return 0, 0, err
	}
	n, err = parseHex(l)
	return addr, n, err
}

func (ses *session) readMemory(args string) string {
	addr, n, err := addressAndLength(args)
	if err != nil {
		return replyInval
	}
	sp, err := ses.space()
	if err != nil {
		return replyInval
	}
	b := make([]byte, min(n, maxPacket/2))
	got := sp.read(b, addr)
	if got == 0 && n > 0 {
		return replyFault
	}
	ses.unpatched(b[:got], addr)
	return hex.EncodeToString(b[:got])
}

func (ses *session) writeMemory(args string, binary bool) string {
	where, data, ok := strings.Cut(args, ":")
	addr, n, err := addressAndLength(where)
	b := []byte(data)
	if err == nil && !binary {
		b, err = hex.DecodeString(data)
	}
	if !ok || err != nil || uint64(len(b)) != n {
		return replyInval
	}
	sp, err := ses.space()
	if err != nil {
		return replyInval
	}
	if !sp.write(b, addr) {
		return replyFault
	}
	return replyOK
}

// breakpoint is Z and z: "type,addr,kind".
func (ses *session) breakpoint(insert bool, args string) string {
	typ, where, _ := strings.Cut(args, ",")
	where, _, _ = strings.Cut(where, ";") // conditions are the debugger's own
	t, err := strconv.Atoi(typ)
	addr, kind, aerr := addressAndLength(where)
	if err != nil || aerr != nil || t < 0 {
		return replyInval
	}
	if !insert {
		ses.remove(t, addr, kind)
		return replyOK
	}
	return result(ses.insert(t, addr, kind))
}
