package console_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/console"
	"github.com/gvmspawn/gvmspawn/virtio/virtiotest"
	"github.com/gvmspawn/gvmspawn/virtio/virtq/virtqtest"
)

// terminal is a host side that can be made to block.
type terminal struct {
	mu   sync.Mutex
	cond sync.Cond
	buf  bytes.Buffer
	hold bool
}

func newTerminal(hold bool) *terminal {
	t := &terminal{hold: hold}
	t.cond.L = &t.mu
	return t
}

func (t *terminal) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.hold {
		t.cond.Wait()
	}
	return t.buf.Write(p)
}

func (t *terminal) release() {
	t.mu.Lock()
	t.hold = false
	t.cond.Broadcast()
	t.mu.Unlock()
}

func (t *terminal) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.String()
}

func newDevice(t *testing.T, ports ...console.PortConfig) *console.Device {
	t.Helper()
	d, err := console.New(console.Config{Cols: 80, Rows: 25, Ports: ports})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func flush(t *testing.T, p *console.Port) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := p.Flush(ctx); err != nil {
		t.Fatalf("flush: %v", err)
	}
}

// §5.3.4: cols, rows and max_nr_ports.
func TestConfig(t *testing.T) {
	m := virtiotest.New(t, newDevice(t, console.PortConfig{}), virtiotest.Options{})
	if got, want := m.Config(0, 16), []byte{80, 0, 25, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}; !bytes.Equal(got, want) {
		t.Errorf("config is %x, want %x", got, want)
	}
	if m.Features.Has(console.VIRTIO_CONSOLE_F_MULTIPORT) || len(m.Queue) != 2 {
		t.Errorf("one port: features %#x and %d queues", m.Features, len(m.Queue))
	}
}

// §5.3.5: a change of size is a configuration change, and so is the first size.
func TestResize(t *testing.T) {
	d := newDevice(t, console.PortConfig{})
	m := virtiotest.New(t, d, virtiotest.Options{})
	<-m.ConfigChanged()
	d.Resize(80, 25) // no change, no notification
	d.Resize(132, 43)
	<-m.ConfigChanged()
	if got := m.Config(0, 4); !bytes.Equal(got, []byte{132, 0, 43, 0}) || m.ConfigChanges() != 2 {
		t.Errorf("config is %x after %d changes", got, m.ConfigChanges())
	}
	m.Reset()
	d.Resize(1, 1) // a storm without a driver costs nothing
}

// §5.3.6: transmitq buffers are output in order.
func TestOutput(t *testing.T) {
	output(t, virtiotest.Options{EventIdx: true})
	output(t, virtiotest.Options{Packed: true})
}

func output(t *testing.T, o virtiotest.Options) {
	t.Helper()
	term := newTerminal(false)
	d := newDevice(t, console.PortConfig{Output: term})
	m := virtiotest.New(t, d, o)
	var want strings.Builder
	for i := range 500 {
		line := strings.Repeat("x", i) + "\n"
		want.WriteString(line)
		m.Queue[1].Do([][]byte{[]byte(line[:i/2]), []byte(line[i/2:])}, nil)
	}
	flush(t, d.Port(0))
	if term.String() != want.String() {
		t.Error("output differs")
	}
}

// Row 24: a flood against a reader that does not read makes the guest wait;
// a reset meanwhile returns, and nothing that was accepted is lost.
func TestSlowTerminal(t *testing.T) {
	term := newTerminal(true)
	d := newDevice(t, console.PortConfig{Output: term})
	m := virtiotest.New(t, d, virtiotest.Options{})
	chunk := bytes.Repeat([]byte("0123456789abcdef"), 256)
	for range 64 { // 256 KiB against 64 KiB of buffer
		m.Queue[1].Add([][]byte{chunk}, nil)
	}
	m.Queue[1].Kick()
	done := 0
	for done < 15 {
		m.Queue[1].Wait()
		done++
	}
	time.Sleep(20 * time.Millisecond)
	for {
		if _, ok := m.Queue[1].Used(); !ok {
			break
		}
		done++
	}
	if done > 16 {
		t.Errorf("%d chunks were accepted, but only 16 fit", done)
	}
	m.Reset()
	if err := m.Activate(); err != nil {
		t.Fatal(err)
	}
	term.release()
	m.Queue[1].Do([][]byte{[]byte("after")}, nil)
	flush(t, d.Port(0))
	got := term.String()
	if !strings.HasSuffix(got, "after") || len(got) < done*len(chunk)+5 {
		t.Errorf("got %d bytes, accepted %d", len(got), done*len(chunk)+5)
	}
}

// The end of a machine does not wait for a terminal that is held up.
func TestCloseBlocked(t *testing.T) {
	term := newTerminal(true)
	d := newDevice(t, console.PortConfig{Output: term})
	m := virtiotest.New(t, d, virtiotest.Options{})
	m.Queue[1].Do([][]byte{[]byte("x")}, nil)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
	defer cancel()
	if err := d.Port(0).Flush(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("flush: %v", err)
	}
	m.Reset()
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	term.release()
}

// A host terminal that goes away takes no more output, and the guest goes on (row 28).
func TestHangup(t *testing.T) {
	r, w := io.Pipe()
	d := newDevice(t, console.PortConfig{Output: w})
	m := virtiotest.New(t, d, virtiotest.Options{})
	_ = r.CloseWithError(errors.New("hangup"))
	for range 100 {
		m.Queue[1].Do([][]byte{make([]byte, 4096)}, nil)
	}
	if err := d.Port(0).Flush(context.Background()); err == nil {
		t.Error("flush hides the error")
	}
}

// §5.3.6: input fills receiveq buffers; it waits while there are none, and it
// outlives a reset.
func TestInput(t *testing.T) {
	d := newDevice(t, console.PortConfig{})
	p := d.Port(0)
	if n := p.Push([]byte("early ")); n != 6 {
		t.Fatalf("push took %d", n)
	}
	m := virtiotest.New(t, d, virtiotest.Options{EventIdx: true})
	if u := m.Queue[0].Do(nil, []int{4, 100}); string(u.Bytes()) != "early " {
		t.Errorf("got %q", u.Bytes())
	}
	m.Reset()
	// Held input is bounded.
	total := 0
	for range 100 {
		total += p.Push(bytes.Repeat([]byte("y"), 1000))
	}
	if total != 64<<10 {
		t.Errorf("held %d bytes", total)
	}
	if err := m.Activate(); err != nil {
		t.Fatal(err)
	}
	fed := make(chan error, 1)
	go func() { fed <- p.Feed(context.Background(), []byte("end")) }()
	got := 0
	for got < total+3 {
		got += int(m.Queue[0].Do(nil, []int{4096}).Written)
	}
	if err := <-fed; err != nil {
		t.Error(err)
	}
}

// A reader of the host's input is never held for good.
func TestFeedEnds(t *testing.T) {
	d := newDevice(t, console.PortConfig{})
	ctx, cancel := context.WithCancel(context.Background())
	fed := make(chan error, 1)
	go func() { fed <- d.Port(0).Feed(ctx, make([]byte, 1<<20)) }()
	cancel()
	if err := <-fed; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	go func() { fed <- d.Port(0).Feed(context.Background(), make([]byte, 1<<20)) }()
	_ = d.Close()
	if err := <-fed; !errors.Is(err, console.ErrClosed) {
		t.Error(err)
	}
}

// §5.3.4: emerg_wr writes a character without queues.
func TestEmergencyWrite(t *testing.T) {
	term := newTerminal(false)
	d := newDevice(t, console.PortConfig{Output: term})
	for _, c := range []byte("panic") {
		d.WriteConfig(8, []byte{c, 0, 0, 0})
	}
	d.WriteConfig(0, []byte{1, 2, 3, 4}) // read-only fields
	d.WriteConfig(8, nil)
	flush(t, d.Port(0))
	if term.String() != "panic" {
		t.Errorf("got %q", term.String())
	}
}

func control(id uint32, event, value uint16, rest ...byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, id)
	b = binary.LittleEndian.AppendUint16(b, event)
	b = binary.LittleEndian.AppendUint16(b, value)
	return append(b, rest...)
}

// §5.3.6.2: the multiport conversation.
func TestMultiport(t *testing.T) {
	term := newTerminal(false)
	d := newDevice(t, console.PortConfig{}, console.PortConfig{Name: "org.test", Output: term})
	m := virtiotest.New(t, d, virtiotest.Options{})
	if len(m.Queue) != 6 {
		t.Fatalf("%d queues", len(m.Queue))
	}
	expect := func(want []byte) {
		t.Helper()
		if u := m.Queue[2].Do(nil, []int{256}); !bytes.Equal(u.Bytes(), want) {
			t.Errorf("control message %x, want %x", u.Bytes(), want)
		}
	}
	send := func(msg []byte) { m.Queue[3].Do([][]byte{msg}, nil) }
	send(control(0xffffffff, console.VIRTIO_CONSOLE_DEVICE_READY, 1))
	expect(control(0, console.VIRTIO_CONSOLE_DEVICE_ADD, 1))
	expect(control(1, console.VIRTIO_CONSOLE_DEVICE_ADD, 1))
	send(control(1, console.VIRTIO_CONSOLE_PORT_READY, 1))
	expect(control(1, console.VIRTIO_CONSOLE_PORT_NAME, 1, []byte("org.test")...))
	expect(control(1, console.VIRTIO_CONSOLE_PORT_OPEN, 1))
	send(control(0, console.VIRTIO_CONSOLE_PORT_READY, 1))
	expect(control(0, console.VIRTIO_CONSOLE_CONSOLE_PORT, 1))
	expect(control(0, console.VIRTIO_CONSOLE_PORT_OPEN, 1))
	expect(control(0, console.VIRTIO_CONSOLE_RESIZE, 1, 80, 0, 25, 0))
	d.Resize(100, 30)
	expect(control(0, console.VIRTIO_CONSOLE_RESIZE, 1, 100, 0, 30, 0))

	// Input of port 1 waits until the guest opens it.
	d.Port(1).Push([]byte("in"))
	m.Queue[4].Add(nil, []int{16})
	m.Queue[4].Kick()
	time.Sleep(5 * time.Millisecond)
	if _, ok := m.Queue[4].Used(); ok {
		t.Error("input before the port was open")
	}
	send(control(1, console.VIRTIO_CONSOLE_PORT_OPEN, 1))
	if u := m.Queue[4].Wait(); string(u.Bytes()) != "in" {
		t.Errorf("got %q", u.Bytes())
	}
	m.Queue[5].Do([][]byte{[]byte("out")}, nil)
	flush(t, d.Port(1))
	if term.String() != "out" {
		t.Errorf("got %q", term.String())
	}
	// Row 24: unknown messages and ports are ignored.
	send(control(99, console.VIRTIO_CONSOLE_PORT_READY, 1))
	send(control(1, 777, 1))
	send([]byte{1, 2, 3})
	send(nil)
	if m.NeedsReset() {
		t.Error("device gave up")
	}
}

// Reset with everything in flight.
func TestResetStorm(t *testing.T) { resets(t, 200) }

// Ten thousand resets under load, the long suite's.
func TestLongResets(t *testing.T) { virtiotest.LongResets(t, resets) }

func resets(t *testing.T, n int) {
	t.Helper()
	term := newTerminal(false)
	d := newDevice(t, console.PortConfig{Output: term}, console.PortConfig{Name: "x"})
	m := virtiotest.New(t, d, virtiotest.Options{Size: 8})
	for range n {
		d.Port(0).Push([]byte("abc"))
		m.Queue[0].Add(nil, []int{2})
		m.Queue[1].Add([][]byte{make([]byte, 100)}, nil)
		m.Queue[3].Add([][]byte{control(0, console.VIRTIO_CONSOLE_DEVICE_READY, 1)}, nil)
		for _, q := range m.Queue {
			q.Kick()
		}
		m.Reset()
		if err := m.Activate(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNewErrors(t *testing.T) {
	for _, c := range []console.Config{{}, {Ports: make([]console.PortConfig, 33)}, {Ports: []console.PortConfig{{Name: strings.Repeat("n", 129)}}}} {
		if _, err := console.New(c); err == nil {
			t.Errorf("%d ports accepted", len(c.Ports))
		}
	}
	var _ virtio.Device = (*console.Device)(nil)
}

// One request costs no allocation, in either direction.
func TestAllocs(t *testing.T) {
	term := discard{}
	d := newDevice(t, console.PortConfig{Output: term})
	m := virtiotest.New(t, d, virtiotest.Options{})
	gpa := m.Mem.Alloc(64)
	write := m.Queue[1].Again(virtqtest.Desc{Addr: gpa, Len: 64})
	read := m.Queue[0].Again(virtqtest.Desc{Addr: gpa, Len: 64, Flags: virtqtest.DescWrite})
	msg := []byte("hello")
	n := testing.AllocsPerRun(500, func() {
		write()
		d.Port(0).Push(msg)
		read()
	})
	if n != 0 {
		t.Errorf("%v allocations per request", n)
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

func FuzzControl(f *testing.F) {
	f.Add(control(0, console.VIRTIO_CONSOLE_DEVICE_READY, 1))
	f.Add(control(1, console.VIRTIO_CONSOLE_PORT_OPEN, 0))
	f.Fuzz(func(t *testing.T, msg []byte) {
		d := newDevice(t, console.PortConfig{}, console.PortConfig{Name: "p"})
		m := virtiotest.New(t, d, virtiotest.Options{Size: 16})
		m.Queue[2].Add(nil, []int{len(msg)%40 + 1})
		m.Queue[2].Kick()
		for len(msg) > 0 {
			n := min(len(msg), 8)
			m.Queue[3].Do([][]byte{msg[:n]}, nil)
			msg = msg[n:]
		}
		m.Reset()
	})
}
