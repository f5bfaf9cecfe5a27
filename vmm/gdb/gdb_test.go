package gdb

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/mem"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// fakeCPU is a stopped CPU.
type fakeCPU struct {
	vcpu.VCPU
	any   bool
	regs  vcpu.Registers
	fpu   vcpu.FPU
	debug *vcpu.Debug
}

func (c *fakeCPU) Registers(r *vcpu.Registers) error    { *r = c.regs; return nil }
func (c *fakeCPU) SetRegisters(r *vcpu.Registers) error { c.regs = *r; return nil }
func (c *fakeCPU) AnyAddress() bool                     { return c.any }
func (c *fakeCPU) FPU(f *vcpu.FPU) error                { *f = c.fpu; return nil }
func (c *fakeCPU) SetFPU(f *vcpu.FPU) error             { c.fpu = *f; return nil }
func (c *fakeCPU) SetDebug(d *vcpu.Debug) error {
	if !c.any && d != nil && len(d.Points) > 4 {
		return vcpu.ErrTooManyPoints
	}
	c.debug = d
	return nil
}

// fakeTarget is a machine with two CPUs and 64 KiB of RAM.
type fakeTarget struct {
	cpus   [2]fakeCPU
	mem    *mem.Memory
	resume chan []Mode
	killed bool
}

func newTarget(t testing.TB, anyAddress bool) *fakeTarget {
	f := &fakeTarget{mem: mem.New(), resume: make(chan []Mode, 100)}
	if _, err := f.mem.Add("RAM", 0, 1<<16, mem.RAM); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.mem.Close() })
	for i := range f.cpus {
		f.cpus[i].any = anyAddress
		f.cpus[i].regs.RIP = 0x1000 + uint64(i)
	}
	return f
}

func (f *fakeTarget) CPUs() int           { return len(f.cpus) }
func (f *fakeTarget) CPU(i int) vcpu.VCPU { return &f.cpus[i] }
func (f *fakeTarget) Memory() *mem.Memory { return f.mem }
func (f *fakeTarget) Stop() error         { return nil }
func (f *fakeTarget) Kill()               { f.killed = true }
func (f *fakeTarget) Resume(m []Mode) {
	select {
	case f.resume <- slices.Clone(m):
	default: // the fuzz target does not look
	}
}
func (f *fakeTarget) Command(line string, w io.Writer) (bool, error) {
	if line == "fail" {
		return true, errors.New("it failed")
	}
	fmt.Fprint(w, strings.Repeat("x", 10000))
	return line == "long", nil
}

// client is a debugger.
type client struct {
	t *testing.T
	c net.Conn
	r *bufio.Reader
}

// connect serves f and connects to it.
func connect(t *testing.T, f *fakeTarget) (*Server, *client) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(l)
	if !s.Attach(f) {
		t.Error("the first machine does not wait")
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	t.Cleanup(func() { c.Close(); s.Close(0) })
	return s, &client{t, c, bufio.NewReader(c)}
}

func (c *client) send(data string) {
	c.t.Helper()
	if _, err := c.c.Write(appendPacket(nil, data)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) reply() string {
	c.t.Helper()
	data, _, err := readPacket(c.r)
	if err != nil {
		c.t.Fatal(err)
	}
	return string(data)
}

// ask sends requests and compares the replies.
func (c *client) ask(pairs ...string) {
	c.t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		c.send(pairs[i])
		if got := c.reply(); got != pairs[i+1] {
			c.t.Errorf("%q is answered by %q, want %q", pairs[i], got, pairs[i+1])
		}
	}
}

// TestRequests is a debugger's dialogue (Debugging with GDB, E.2 to E.4).
func TestRequests(t *testing.T) {
	f := newTarget(t, true)
	f.mem.WriteAt([]byte("hello"), 0x2000)
	f.cpus[0].regs.GPR[vcpu.RAX] = 0x1122334455667788
	f.cpus[0].regs.CR3 = 0xabc000
	_, c := connect(t, f)
	cr3 := slices.IndexFunc(registers, func(r register) bool { return r.name == "cr3" })
	c.ask("?", "T05thread:1;", "vMustReplyEmpty", "", "nonsense", "",
		"qAttached", "1", "qC", "QC1", "qfThreadInfo", "m1,2", "qsThreadInfo", "l",
		"qThreadExtraInfo,2", hex.EncodeToString([]byte("CPU 1")),
		"Hg2", "OK", "p10", "0110000000000000", "Hg0", "OK", "Hg3", "E16", "Hg1", "OK", "T2", "OK", "T3", "E16",
		"p0", "8877665544332211", "P0=0100000000000000", "OK", "p0", "0100000000000000",
		"P12=0000", "E16", "P12=01000000", "E16", "pffff", "E16",
		fmt.Sprintf("p%x", cr3), "00c0ab0000000000",
		"m2000,5", "68656c6c6f", "mfffe,5", "0000", "m10000,1", "E0e", "m,", "E16", "m0,ffffffffffffffff0", "E16",
		"M2001,2:4142", "OK", "m2000,5", "6841426c6f", "X2003,2:#}", "OK", "m2003,2", "237d", "M2000,2:41", "E16", "Mffff,2:0000", "E0e",
		"Qqemu.PhyMemMode:1", "OK", "qqemu.PhyMemMode", "1", "Qqemu.PhyMemMode:0", "OK")
	if f.cpus[0].regs.GPR[vcpu.RAX] != 1 {
		t.Error("rax was not written")
	}
	c.send("qRcmd," + hex.EncodeToString([]byte("long")))
	n := 0
	for got := c.reply(); got != "OK"; got = c.reply() {
		n += (len(got) - 1) / 2
	}
	if n != 10000 {
		t.Errorf("%d bytes of output, want 10000", n)
	}
	c.send("qRcmd," + hex.EncodeToString([]byte("fail")))
	if out, ok := c.reply(), c.reply(); out != "O"+hex.EncodeToString([]byte("it failed\n")) || ok != "OK" {
		t.Errorf("output %q, then %q", out, ok)
	}
}

// TestGoing: vCont, c and s by thread; stops are reported once; ^C.
func TestGoing(t *testing.T) {
	f := newTarget(t, true)
	s, c := connect(t, f)
	c.ask("qSupported:swbreak+;hwbreak+", fmt.Sprintf("PacketSize=%x;qXfer:features:read+;QStartNoAckMode+;vContSupported+;swbreak+;hwbreak+", maxPacket),
		"QStartNoAckMode", "OK", "vCont?", "vCont;c;C;s;S;t", "Z0,1234,1", "OK", "Z1,5678,1", "OK", "Z2,100,4", "OK", "Z2,101,4", "",
		"Z3,200,1", "OK", "Z4,300,8", "OK", "Z9,0,0", "")
	for _, tt := range []struct {
		packet string
		modes  []Mode
		cpu    int
		exit   vcpu.Exit
		reply  string
	}{
		{"vCont;s:1", []Mode{Step, Hold}, 0, vcpu.Exit{}, "T05thread:1;"},
		{"vCont;s:2;c", []Mode{Run, Step}, 1, vcpu.Exit{}, "T05thread:2;"},
		{"c", []Mode{Run, Run}, 1, vcpu.Exit{Stop: vcpu.StopBreak, Address: 0x1234}, "T05swbreak:;thread:2;"},
		{"s", []Mode{Hold, Step}, 0, vcpu.Exit{Stop: vcpu.StopBreak, Address: 0x5678}, "T05hwbreak:;thread:1;"},
		{"C05", []Mode{Run, Run}, 0, vcpu.Exit{Stop: vcpu.StopWatch, Address: 0x100}, "T05watch:100;thread:1;"},
		{"vCont;c", []Mode{Run, Run}, 0, vcpu.Exit{Stop: vcpu.StopWatch, Address: 0x200}, "T05rwatch:200;thread:1;"},
		{"vCont;c:-1", []Mode{Run, Run}, 0, vcpu.Exit{Stop: vcpu.StopWatch, Address: 0x300}, "T05awatch:300;thread:1;"},
		{"c", []Mode{Run, Run}, 1, vcpu.Exit{Reason: vcpu.ExitShutdown}, "T0bthread:2;"},
	} {
		if tt.exit.Reason == 0 {
			tt.exit.Reason = vcpu.ExitDebug
		}
		c.send(tt.packet)
		if got := <-f.resume; !slices.Equal(got, tt.modes) {
			t.Errorf("%s lets the CPUs go in modes %v, want %v", tt.packet, got, tt.modes)
		}
		s.Event(tt.cpu, tt.exit)
		s.Event(1-tt.cpu, vcpu.Exit{Reason: vcpu.ExitDebug}) // another one, at the same moment
		if got := c.reply(); got != tt.reply {
			t.Errorf("%s: the stop is %q, want %q", tt.packet, got, tt.reply)
		}
		c.ask("?", tt.reply)
	}
	if n := len(f.cpus[0].debug.Points); n != 5 {
		t.Errorf("%d points in the engine, want 5", n)
	}
	c.ask("z0,1234,1", "OK", "z1,5678,1", "OK", "z2,100,4", "OK", "z3,200,1", "OK", "z4,300,8", "OK")
	c.send("c")
	<-f.resume
	if f.cpus[0].debug != nil {
		t.Error("the engine still looks out for something")
	}
	c.ask("m0,1", "E10") // it runs
	c.c.Write([]byte{interrupt})
	if got := c.reply(); !strings.HasPrefix(got, "T02") {
		t.Errorf("^C is answered by %q", got)
	}
}

// TestPatches: on an engine that wants INT3s in memory they are there, hidden,
// and gone at the end; the guest's own are delivered to it.
func TestPatches(t *testing.T) {
	f := newTarget(t, false)
	f.mem.WriteAt([]byte{0x90, 0x90, 0x90}, 0x3000)
	s, c := connect(t, f)
	c.ask("Z0,3001,1", "OK", "Z0,3001,1", "OK", "m3000,3", "909090", "Z0,20000,1", "E0e",
		"Z1,1,1", "OK", "Z1,2,1", "OK", "Z1,3,1", "OK", "Z1,4,1", "OK", "Z1,5,1", "E1c", "z1,4,1", "OK")
	var b [3]byte
	f.mem.ReadAt(b[:], 0x3000)
	if b != [3]byte{0x90, int3, 0x90} {
		t.Errorf("memory is % x", b)
	}
	c.send("c")
	<-f.resume
	s.Event(0, vcpu.Exit{Reason: vcpu.ExitDebug, Stop: vcpu.StopTrap, Address: 0x4000})
	<-f.resume
	if d := f.cpus[0].debug; d == nil || !d.Trap || len(d.Points) != 3 {
		t.Errorf("the guest's own INT3: %+v", d)
	}
	s.Event(0, vcpu.Exit{Reason: vcpu.ExitDebug, Stop: vcpu.StopTrap, Address: 0x3001})
	if got := c.reply(); got != "T05thread:1;" {
		t.Errorf("our INT3: %q", got)
	}
	c.ask("D", "OK")
	<-f.resume
	f.mem.ReadAt(b[:], 0x3000)
	if b != [3]byte{0x90, 0x90, 0x90} || f.cpus[0].debug != nil {
		t.Errorf("after the debugger left memory is % x, the engine %+v", b, f.cpus[0].debug)
	}
}

// TestLife: a debugger survives a reboot with its breakpoints, is told of the end,
// and a lost one lets the machine go on.
func TestLife(t *testing.T) {
	f := newTarget(t, true)
	s, c := connect(t, f)
	c.ask("Z1,1234,1", "OK")
	c.send("c")
	<-f.resume
	s.Detach()
	next := newTarget(t, true)
	if s.Attach(next) {
		t.Error("the second machine waits, though the debugger said to go on")
	}
	if d := next.cpus[1].debug; d == nil || len(d.Points) != 1 {
		t.Errorf("the second machine's points: %+v", d)
	}
	s.Event(1, vcpu.Exit{Reason: vcpu.ExitDebug, Stop: vcpu.StopBreak, Address: 0x1234})
	if got := c.reply(); got != "T05thread:2;" {
		t.Errorf("the stop is %q", got)
	}
	s.Detach()
	if !s.Attach(next) {
		t.Error("the third machine runs, though the debugger has not said so")
	}
	c.c.Close()
	if modes := <-next.resume; !slices.Equal(modes, []Mode{Run, Run}) || next.cpus[1].debug != nil {
		t.Errorf("without the debugger: modes %v, %+v", modes, next.cpus[1].debug)
	}
}

func TestEnd(t *testing.T) {
	f := newTarget(t, true)
	s, c := connect(t, f)
	c.send("c")
	<-f.resume
	s.Detach()
	s.Close(42)
	if got := c.reply(); got != "W2a" {
		t.Errorf("the end is %q", got)
	}
}

func TestKill(t *testing.T) {
	f := newTarget(t, true)
	_, c := connect(t, f)
	c.ask("vKill;1", "OK")
	if _, err := c.r.ReadByte(); err == nil {
		t.Error("the connection goes on")
	}
	if !f.killed {
		t.Error("the machine lives")
	}
}

// TestRegisterFile: the description is XML that numbers what g transfers, and
// writing all registers back changes nothing.
func TestRegisterFile(t *testing.T) {
	var d struct {
		Features []struct {
			Name string `xml:"name,attr"`
			Regs []struct {
				Name string `xml:"name,attr"`
				Bits int    `xml:"bitsize,attr"`
			} `xml:"reg"`
		} `xml:"feature"`
	}
	if err := xml.Unmarshal([]byte(targetXML), &d); err != nil {
		t.Fatal(err)
	}
	bits := 0
	for _, f := range d.Features {
		for _, r := range f.Regs {
			bits += r.Bits
		}
	}
	f := &file{}
	for i := range f.regs.GPR {
		f.regs.GPR[i] = uint64(i) << 32
	}
	for i := range 160 + 256 {
		f.fpu[i] = byte(i)
	}
	clear(f.fpu[14:16]) // beside FCS and FDS: not in the protocol
	clear(f.fpu[22:24])
	f.regs.RFLAGS, f.regs.CR8, f.regs.Seg[vcpu.CS].Selector = 2, 5, 8
	all := f.all()
	if len(all) != bits/4 {
		t.Errorf("g has %d digits, the description %d bits", len(all), bits)
	}
	b, _ := hex.DecodeString(all)
	again := *f
	if !again.setAll(b) || again != *f {
		t.Errorf("written back:\n%+v\nwas\n%+v", again, *f)
	}
	if f.setAll(b[1:]) {
		t.Error("a short G is taken")
	}
}

// TestTranslate walks each kind of page table (Intel SDM vol. 3A §4.3 to §4.5).
func TestTranslate(t *testing.T) {
	m := mem.New()
	defer m.Close()
	if _, err := m.Add("RAM", 0, 1<<16, mem.RAM); err != nil {
		t.Fatal(err)
	}
	put := func(at mem.GPA, v uint64, n int) {
		m.WriteAt(binary.LittleEndian.AppendUint64(nil, v)[:n], at)
	}
	// 4 levels at 0x1000: 0x4000_5678 → 0x9678, 2 MiB page at 0x4020_0000, 1 GiB at 0x8000_0000; 5 levels at 0x6000.
	put(0x1000, 0x2001, 8)
	put(0x2008, 0x3001, 8)
	put(0x2010, 1<<39|0x80|1, 8)
	put(0x3000, 0x4001, 8)
	put(0x3008, 0x600000|1<<63|0x81, 8)
	put(0x4028, 0x9001, 8)
	put(0x6000, 0x1001, 8)
	// PAE at 0x7000, 32-bit at 0x8000 with a 4 MiB page of PSE-36.
	put(0x7008, 0x3001, 8)
	put(0x8000+0x100*4, 0xa001, 4)
	put(0xa000+5*4, 0xb001, 4)
	put(0x8000+0x101*4, 0x400000|1<<13|0x81, 4)
	long := vcpu.Registers{CR0: cr0PG, CR3: 0x1000, CR4: cr4PAE, EFER: eferLMA}
	five := long
	five.CR3, five.CR4 = 0x6000, cr4PAE|cr4LA57
	pae := vcpu.Registers{CR0: cr0PG, CR3: 0x7000, CR4: cr4PAE}
	legacy := vcpu.Registers{CR0: cr0PG, CR3: 0x8000, CR4: cr4PSE}
	for _, tt := range []struct {
		name string
		regs vcpu.Registers
		la   uint64
		gpa  uint64
		ok   bool
	}{
		{"no paging", vcpu.Registers{}, 0x1_2345_6789, 0x2345_6789, true},
		{"4 KiB", long, 0x4000_5678, 0x9678, true},
		{"2 MiB", long, 0x4021_2345, 0x61_2345, true},
		{"1 GiB", long, 0x8123_4567, 1<<39 | 0x123_4567, true},
		{"absent", long, 0x4000_6000, 0, false},
		{"table outside of RAM", vcpu.Registers{CR0: cr0PG, CR3: 0x100_0000, EFER: eferLMA}, 0, 0, false},
		{"5 levels", five, 0x4000_5678, 0x9678, true},
		{"PAE", pae, 0x4000_5678, 0x9678, true},
		{"PAE, absent", pae, 0xc000_0000, 0, false},
		{"32-bit", legacy, 0x4000_5678, 0xb678, true},
		{"4 MiB", legacy, 0x4041_2345, 1<<32 | 0x41_2345, true},
	} {
		s := space{mem: m, regs: &tt.regs}
		if gpa, ok := s.translate(tt.la); gpa != tt.gpa || ok != tt.ok {
			t.Errorf("%s: %#x is at %#x, %v; want %#x, %v", tt.name, tt.la, gpa, ok, tt.gpa, tt.ok)
		}
	}
}

// TestPackets: framing, escapes, a wrong checksum, a packet that is too long.
func TestPackets(t *testing.T) {
	in := "+-noise$g#67\x03$m0,1#00$" + strings.Repeat("a", maxPacket+1) + "#00$cut$c#63" + string(appendPacket(nil, "a}b#$*"))
	r := bufio.NewReader(strings.NewReader(in))
	for _, want := range []string{"g", "^C", "bad", "bad", "c", "a}b#$*", "EOF"} {
		data, intr, err := readPacket(r)
		got := string(data)
		switch {
		case intr:
			got = "^C"
		case err == errBadPacket:
			got = "bad"
		case err != nil:
			got = err.Error()
		}
		if got != want {
			t.Errorf("%.20q, want %q", got, want)
		}
	}
}

// FuzzSession: whatever a debugger sends, the stub neither fails nor hangs, and
// only answers with well-formed packets.
func FuzzSession(f *testing.F) {
	for _, s := range []string{"+$g#67", "$qSupported:swbreak+#00", "$m0,ffff#00", "$Z0,1000,1#00$c#63\x03", "$vCont;s:1;c#00", "$Hg-1#00$p7#00", "$qXfer:features:read:target.xml:0,10#00", "$X10,1:}\x03#00"} {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	f.Fuzz(func(t *testing.T, in []byte, anyAddress bool) {
		target := newTarget(t, anyAddress)
		here, there := net.Pipe()
		s := &Server{events: make(chan event, maxEvents), target: target}
		ses := newSession(s, here)
		s.ses = ses
		var out bytes.Buffer
		read := make(chan struct{})
		go func() { defer close(read); io.Copy(&out, there) }()
		r := bufio.NewReader(bytes.NewReader(fixSums(in)))
		for {
			data, intr, err := readPacket(r)
			if err != nil && err != errBadPacket {
				break
			}
			ses.take(message{data, intr, err == errBadPacket}, true)
			if ses.running {
				s.mu.Lock()
				ses.stopped(event{0, vcpu.Exit{Reason: vcpu.ExitDebug, Stop: vcpu.Stop(len(in) & 3), Address: 0x1000}})
				s.mu.Unlock()
			}
		}
		ses.close()
		<-read
		for r := bufio.NewReader(&out); ; {
			if _, _, err := readPacket(r); err == errBadPacket {
				t.Fatal("a bad reply")
			} else if err != nil {
				break
			}
		}
	})
}

// fixSums gives every packet of in the right checksum, so that the fuzzer gets
// behind it.
func fixSums(in []byte) (out []byte) {
	for len(in) > 0 {
		i := bytes.IndexByte(in, packetStart)
		if i < 0 {
			return append(out, in...)
		}
		end := bytes.IndexByte(in[i:], packetEnd)
		if end < 0 {
			return append(out, in...)
		}
		sum := uint8(0)
		for _, b := range in[i+1 : i+end] {
			sum += b
		}
		out = fmt.Appendf(append(out, in[:i+end+1]...), "%02x", sum)
		in = in[min(len(in), i+end+3):]
	}
	return out
}
