package vmm

import (
	"context"
	"io"
	"sync"
	"time"
)

// fallback shows the serial port's output only if the virtio console does not
// speak: a distribution's initial RAM disk may lack that console's driver, and
// its shell, or a panic, must not go unseen. Once it speaks, the kernel writes
// everything to both.
type fallback struct {
	tap *consoleTap

	mu    sync.Mutex // guards the fields below
	held  []byte     // output that is not shown yet
	state fallbackState
	timer *time.Timer // nil before the first output
}

type fallbackState uint8

const (
	fallbackHolds fallbackState = iota
	fallbackShows
	fallbackDrops // the virtio console speaks
)

// fallbackPatience is how long the virtio console may be silent after the
// serial port's first output.
const fallbackPatience = 5 * time.Second

// feed gives input to the port that is shown. serial is nil if that is never
// the serial one.
func (f *fallback) feed(virtio, serial func(context.Context, []byte) error) func(context.Context, []byte) error {
	if serial == nil {
		return virtio
	}
	return func(ctx context.Context, p []byte) error {
		f.mu.Lock()
		shows := f.state == fallbackShows
		f.mu.Unlock()
		if shows {
			return serial(ctx, p)
		}
		return virtio(ctx, p)
	}
}

// Write takes output of the serial port.
func (f *fallback) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch f.state {
	case fallbackShows:
		return f.tap.Write(p)
	case fallbackHolds:
		f.tap.note(p)
		f.held = append(f.held, p...)
		if n := len(f.held) - serialQueue; n > serialQueue { // now and then, not always
			f.held = append(f.held[:0], f.held[n:]...)
		}
		if f.timer == nil {
			f.timer = time.AfterFunc(fallbackPatience, f.show)
		}
	}
	return len(p), nil
}

// show writes what was held, and from now on everything.
func (f *fallback) show() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state != fallbackHolds {
		return
	}
	f.state = fallbackShows
	if f.tap.out != nil && len(f.held) > 0 {
		f.tap.out.Write(f.held) //nolint:errcheck // the next Write tells
	}
	f.held = nil
}

// close shows what the virtio console would not have said before the machine ended.
func (f *fallback) close() {
	f.mu.Lock()
	if f.timer != nil {
		f.timer.Stop()
	}
	f.mu.Unlock()
	f.show()
}

// spoken is the virtio console's output: it ends the serial port's turn.
func (f *fallback) spoken() io.Writer { return spoken{f} }

type spoken struct{ f *fallback }

func (s spoken) Write(p []byte) (int, error) {
	f := s.f
	f.mu.Lock()
	f.state, f.held = fallbackDrops, nil
	f.mu.Unlock()
	return f.tap.Write(p)
}
