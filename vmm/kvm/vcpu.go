package kvm

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// minShared is the smallest sensible size of a CPU's shared pages: kvm_run and
// the page of port data.
const minShared = 2 * 4096

// kickSignal interrupts KVM_RUN; the package comment says why this one.
const kickSignal = unix.SIGURG

// VCPU is one virtual CPU. It implements vcpu.VCPU.
type VCPU struct {
	vm     *VM
	id     int
	fd     int
	shared []byte // kvm_run, then the data of port accesses
	run    *kvmRun
	io     vcpu.IO
	debug  *vcpu.Debug // what SetDebug asked for
	ready  bool        // prepare is done; owned by the thread that runs the CPU
	pace   pace

	// tid is the thread inside Run, or 0.
	tid atomic.Int32
	// smi is a system management interrupt that KVM does not know of yet.
	smi atomic.Bool

	// mu keeps shared mapped while a kick is under way, and guards stats.
	mu     sync.Mutex
	closed bool
	stats  faultStats
}

// newVCPU creates CPU i. It needs prepare before it can run.
func (vm *VM) newVCPU(i int) (*VCPU, error) {
	fd, err := ioctl(vm.fd, KVM_CREATE_VCPU, uintptr(vm.topology.APICID(i)))
	if err != nil {
		return nil, fmt.Errorf("create CPU %d (KVM_CREATE_VCPU): %w", i, err)
	}
	shared, err := unix.Mmap(fd, 0, vm.shared, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("map the kvm_run page of CPU %d: %w", i, err)
	}
	return &VCPU{vm: vm, id: i, fd: fd, shared: shared, run: runOf(shared), io: vm.io}, nil
}

// prepare gives the CPU its CPUID and MSRs, once.
func (c *VCPU) prepare() error {
	if c.closed {
		return ErrClosed
	}
	if c.ready {
		return nil
	}
	if err := c.setCPUID(); err != nil {
		return err
	}
	if !c.vm.reset {
		c.setBootMSRs()
	}
	c.ready = true
	return nil
}

// Run executes guest code until something needs the machine's attention. It
// must be called on a locked OS thread.
func (c *VCPU) Run() (vcpu.Exit, error) {
	if err := c.prepare(); err != nil {
		return vcpu.Exit{}, err
	}
	c.tid.Store(int32(unix.Gettid()))
	exit, err := c.loop()
	c.tid.Store(0)
	return exit, err
}

// A busy CPU yields to Go's scheduler every yieldEvery. That many accesses are between
// two looks at the clock, or one where they come seldom. The package comment says why.
const (
	yieldEvery = 5 * time.Millisecond
	yieldExits = 16
)

// yield is called once for each access.
func (c *VCPU) yield() {
	if c.pace.left--; c.pace.left <= 0 && c.pace.look(time.Now()) {
		runtime.Gosched()
	}
}

// pace decides when a CPU yields.
type pace struct {
	left, most      int // accesses until the next look, and how many there were to be
	looked, yielded time.Time
}

// look is a look at the clock; it reports whether to yield.
func (p *pace) look(now time.Time) bool {
	seldom := now.Sub(p.looked)/time.Duration(max(p.most, 1)) > yieldEvery/2/yieldExits
	if p.most = yieldExits; seldom {
		p.most = 1
	}
	p.left, p.looked = p.most, now
	if now.Sub(p.yielded) <= yieldEvery {
		return false
	}
	p.yielded = now
	return true
}

// loop runs the guest and serves its accesses. It allocates nothing.
func (c *VCPU) loop() (vcpu.Exit, error) {
	for {
		if c.smi.Load() {
			if err := c.takeSMI(); err != nil {
				return vcpu.Exit{}, err
			}
		}
		if errno := ioctlRun(c.fd); errno != 0 {
			// EAGAIN: the CPU has just been started by another one (SIPI).
			if errno != unix.EINTR && errno != unix.EAGAIN {
				return c.runError(errno)
			}
			if c.takeKick() {
				return vcpu.Exit{Reason: vcpu.ExitKick}, nil
			}
			continue
		}
		switch c.run.exitReason {
		case KVM_EXIT_IO:
			if !c.port() {
				return c.unknownExit(), nil
			}
			c.yield()
		case KVM_EXIT_MMIO:
			c.mmio()
			c.yield()
		case KVM_EXIT_IOAPIC_EOI:
			if c.vm.split == nil {
				return c.unknownExit(), nil
			}
			c.vm.split.chip.EOI(c.run.eoi().vector)
		default:
			return c.otherExit(), nil
		}
	}
}

// takeKick takes the kick away and reports whether there was one.
func (c *VCPU) takeKick() bool { return atomic.SwapUint32(&c.run.control, 0) != 0 }

// Kick makes the present or the next Run return ExitKick. After Close it does
// nothing.
func (c *VCPU) Kick() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	atomic.StoreUint32(&c.run.control, immediateExit)
	if tid := c.tid.Load(); tid != 0 {
		// The thread may have left Run, or even ended, since: see the package comment.
		_ = unix.Tgkill(c.vm.pid, int(tid), kickSignal)
	}
}

// NMI delivers a non-maskable interrupt: a message with delivery mode NMI to
// the CPU's APIC (Intel SDM vol. 3A §11.11). KVM_NMI would have to wait until
// the CPU leaves KVM_RUN.
func (c *VCPU) NMI() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return ErrClosed
	}
	m := kvmMSI{addressLo: msiAddress | c.vm.topology.APICID(c.id)<<msiDestShift, data: msiDeliverNMI}
	if err := ioctlQuick(c.vm.fd, KVM_SIGNAL_MSI, &m); err != nil {
		return fmt.Errorf("send an NMI to CPU %d: %w", c.id, err)
	}
	return nil
}

// Close unmaps and closes the CPU. VM.Close calls it.
func (c *VCPU) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	c.run = nil
	c.stats.close()
	return errors.Join(unix.Munmap(c.shared), unix.Close(c.fd))
}
