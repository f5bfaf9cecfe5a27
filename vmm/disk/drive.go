package disk

import (
	"log/slog"
	"sync"
)

// Config describes a Drive.
type Config struct {
	// Image is the disk. Close of the drive closes it.
	Image Image
	// Discard lets requests give storage back.
	Discard bool
	// NoFlush answers flushes without making anything durable: for disks
	// that may be lost with the host.
	NoFlush bool
	// InOrder carries the requests of a queue out one after the other,
	// whatever time they take: deterministic machines need it.
	InOrder bool
	// Engine says how requests that may wait are carried out.
	Engine Engine
	// Log gets host I/O errors, at a bounded rate. Nil means slog.Default().
	Log *slog.Logger
}

// Engine is a way to carry out requests that may wait.
type Engine uint8

const (
	// EngineAuto is EngineURing for raw images with direct I/O, else
	// EnginePool. So it was measured (BenchmarkCold, 2 CPUs, virtual disk, 4 KiB
	// reads, depth 32): 33 µs a request against 62 with direct I/O, but 34
	// against 24 for a cold file through the page cache.
	EngineAuto Engine = iota
	// EnginePool is a bounded pool of goroutines, for every image.
	EnginePool
	// EngineURing is io_uring(7), for raw images; where the host has none,
	// or for other images, the pool takes its place.
	EngineURing
)

// Drive is an image with what carries requests out: the part of a disk that
// virtio-blk, SCSI and NVMe have in common. What the image can do without
// waiting (see TryImage), and what is alone in its queue, is done by the
// caller; the rest goes to an io_uring or a bounded pool, so that a slow
// request holds up no other one.
type Drive struct {
	cfg    Config
	try    TryImage // Image, if it is one
	errors errorLog
	pool   *pool
}

// NewDrive returns a drive that is idle.
func NewDrive(cfg Config) *Drive {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	d := &Drive{cfg: cfg, errors: errorLog{log: cfg.Log}, pool: newPool()}
	d.try, _ = cfg.Image.(TryImage)
	return d
}

// Image is the drive's disk.
func (d *Drive) Image() Image { return d.cfg.Image }

// Discards reports whether requests may give storage back.
func (d *Drive) Discards() bool { return d.cfg.Discard && !d.cfg.Image.ReadOnly() }

// InOrder is that of the configuration.
func (d *Drive) InOrder() bool { return d.cfg.InOrder }

// Close ends the pool and closes the image. All queues have been closed.
func (d *Drive) Close() error {
	d.pool.close()
	return d.cfg.Image.Close()
}

// Op is what a Request asks for.
type Op uint8

// Operations. Data is that of OpRead and OpWrite, ranges are those of the last two.
const (
	OpRead Op = iota
	OpWrite
	OpFlush
	OpDiscard
	OpWriteZeroes
)

// String is the operation's name for people.
func (o Op) String() string {
	return [...]string{"read", "write", "flush", "discard", "write zeroes"}[o]
}

// Range is a part of a disk in bytes, both multiples of SectorSize.
type Range struct {
	Off, N uint64
	Unmap  bool // of OpWriteZeroes: the storage may be given back
}

// Request is one request in flight. A device makes one for each place in its
// queue and fills it anew for each use. What it asks for lies inside the disk.
type Request struct {
	Op     Op
	Bufs   [][]byte // data
	Off    uint64   // where the data is on the disk, in bytes
	N      uint64   // bytes of data
	Ranges []Range
	// Through makes a write durable before it is done.
	Through bool
	// Done is told how the request went, once, on any goroutine. After that
	// the request is its owner's again.
	Done func(error)

	queue *Queue // where it is in flight
}

// execute carries the request out, waiting as long as it takes.
func (d *Drive) execute(r *Request) error {
	img := d.cfg.Image
	switch r.Op {
	case OpRead:
		return img.ReadAt(r.Bufs, r.Off)
	case OpWrite:
		return d.through(r, img.WriteAt(r.Bufs, r.Off))
	case OpFlush:
		return d.flush()
	}
	for _, s := range r.Ranges {
		var err error
		switch {
		case s.N == 0:
		case r.Op == OpDiscard:
			err = img.Discard(s.Off, s.N)
		default:
			err = img.WriteZeroes(s.Off, s.N, s.Unmap && d.cfg.Discard)
		}
		if err != nil {
			return err
		}
	}
	return d.through(r, nil)
}

// through flushes after a request that asks for it.
func (d *Drive) through(r *Request, err error) error {
	if err == nil && r.Through {
		return d.flush()
	}
	return err
}

// flush makes all completed writes durable, unless that is not wanted.
func (d *Drive) flush() error {
	if d.cfg.NoFlush {
		return nil
	}
	return d.cfg.Image.Flush()
}

// Flush makes all completed writes durable, for a device that is shut down.
func (d *Drive) Flush() error {
	err := d.flush()
	if err != nil {
		d.errors.report(OpFlush, 0, err)
	}
	return err
}

// attempt tries reads, and writes that need no flush, without waiting.
func (d *Drive) attempt(r *Request) error {
	switch {
	case d.try == nil:
	case r.Op == OpRead:
		return d.try.TryReadAt(r.Bufs, r.Off)
	case r.Op == OpWrite && !r.Through:
		return d.try.TryWriteAt(r.Bufs, r.Off)
	}
	return ErrCannotTry
}

// finish logs a host's error and hands the request back.
func (d *Drive) finish(r *Request, err error) {
	if err != nil {
		off := r.Off
		if len(r.Ranges) > 0 && r.Op >= OpDiscard {
			off = r.Ranges[0].Off
		}
		d.errors.report(r.Op, off, err)
	}
	r.Done(err)
}

const (
	// poolSize bounds the requests of one drive that wait in the host.
	poolSize = 16
	// poolQueue is how many wait for a place in the pool before who submits waits.
	poolQueue = 256
)

// pool carries out requests that may wait for the host.
type pool struct {
	jobs chan *Request
	wg   sync.WaitGroup

	mu      sync.Mutex // guards running and pending
	running int        // goroutines
	pending int        // requests submitted and not finished
}

func newPool() *pool { return &pool{jobs: make(chan *Request, poolQueue)} }

// submit hands a request over, starting a goroutine if all are busy.
func (p *pool) submit(r *Request) {
	r.queue.pooled.Add(1)
	p.mu.Lock()
	if p.pending++; p.pending > p.running && p.running < poolSize {
		p.running++
		p.wg.Go(p.work)
	}
	p.mu.Unlock()
	p.jobs <- r
}

func (p *pool) work() {
	for r := range p.jobs {
		q := r.queue
		q.drive.finish(r, q.drive.execute(r))
		q.notify()
		p.mu.Lock()
		p.pending--
		p.mu.Unlock()
		q.pooled.Done()
	}
}

// close waits until all requests are done. Nobody submits any more.
func (p *pool) close() {
	close(p.jobs)
	p.wg.Wait()
}
