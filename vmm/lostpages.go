package vmm

import (
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Linux before 6.13 takes a page that a host's file has lost for one that is yet
// to be read: KVM tells the guest to wait ("asynchronous page fault"), tries
// again, and neither comes to an end nor leaves KVM_RUN. lostPages finds CPUs
// in that state, so that repairWindow can give them memory. It looks when
// the process has used so much processor time, which such a CPU does and an idle
// machine does not, and it wakes no CPU.
const lostPagesEvery = 50 * time.Millisecond

// hopeless is the number of faults without a result in that time that no other
// cause has: each of them is tens of microseconds of work.
const hopeless = 100

// faultCounter is a CPU of an engine that may try for ever.
type faultCounter interface {
	UnresolvedFaults() (n uint64, ok bool)
}

// lostPages looks after the CPUs while the machine runs.
type lostPages struct {
	repair func(sure bool) bool
	cpus   []faultCounter
	seen   []uint64
	bad    int // looks in a row with hopeless faults, or without counters

	tid  atomic.Int32
	stop atomic.Bool
	done chan struct{}
}

// watchLostPages starts a lostPages where one is needed and returns what ends it.
func (m *Machine) watchLostPages() (end func()) {
	l := &lostPages{repair: m.repairLost, done: make(chan struct{})}
	for i := range m.cfg.CPUs {
		if c, ok := m.vm.VCPU(i).(faultCounter); ok {
			l.cpus = append(l.cpus, c)
		}
	}
	if len(l.cpus) == 0 || len(m.dax)+len(m.pmem) == 0 {
		return func() {}
	}
	l.seen = make([]uint64, len(l.cpus))
	go l.run()
	return l.end
}

// run has a thread of its own, which sleeps by the process's clock.
func (l *lostPages) run() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(l.done)
	l.tid.Store(int32(unix.Gettid()))
	for !l.stop.Load() {
		pause := unix.NsecToTimespec(int64(lostPagesEvery))
		switch err := unix.ClockNanosleep(unix.CLOCK_PROCESS_CPUTIME_ID, 0, &pause, nil); err {
		case nil:
			l.look()
		case unix.EINTR: // by end, or by Go's scheduler
		default:
			return
		}
	}
}

// end ends run: a signal that Go ignores interrupts its sleep, unless it comes
// just before.
func (l *lostPages) end() {
	l.stop.Store(true)
	for pause := 100 * time.Microsecond; ; pause = min(2*pause, 10*time.Millisecond) {
		if tid := l.tid.Load(); tid != 0 {
			_ = unix.Tgkill(unix.Getpid(), int(tid), unix.SIGURG)
		}
		select {
		case <-l.done:
			return
		case <-time.After(pause):
		}
	}
}

// look repairs what CPUs have asked for in vain at two looks in a row. A host
// whose KVM does not count gets what its files' sizes say.
func (l *lostPages) look() {
	bad, counted := false, true
	for i, c := range l.cpus {
		n, ok := c.UnresolvedFaults()
		counted = counted && ok
		bad = bad || ok && n > l.seen[i]+hopeless
		l.seen[i] = n
	}
	if !bad && counted {
		l.bad = 0
		return
	}
	if l.bad++; l.bad >= 2 {
		l.bad = 0
		l.repair(counted)
	}
}
