// Package soft is a software x86-64 CPU: the engine for hosts without usable
// KVM, and for tests. It runs every mode of the processor in an interpreter.
//
// It isolates a guest as an emulator does, not as hardware does: a bug here is
// a bug in a host process. Guest memory is reached through translation buffers
// whose entries are filled from mem.Region alone.
//
// Documents: Intel 64 and IA-32 Architectures Software Developer's Manual
// (SDM), volumes 1 to 4, edition 080 and later; Linux
// Documentation/virt/kvm/x86 for the paravirtual clock.
package soft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	crand "crypto/rand"

	"github.com/gvmspawn/gvmspawn/devices/ioapic"
	"github.com/gvmspawn/gvmspawn/devices/lapic"
	"github.com/gvmspawn/gvmspawn/vmm/bus"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// Config is what a software machine is made of.
type Config struct {
	// Memory is the guest's memory, complete and final.
	Memory *mem.Memory
	// CPUs is the number of virtual CPUs, 1 to 64.
	CPUs int
	// Sockets and Threads divide them up as vcpu.Topology says.
	Sockets, Threads int
	// IO is told of port and memory-mapped I/O.
	IO vcpu.IO
	// Deterministic makes time a function of the executed instructions and
	// RDRAND one of Seed, so that two runs are the same. CPUs must be 1.
	Deterministic bool
	Seed          uint64
	// BootTime is the time of day at which the machine's clock is 0; zero
	// means the host's time.
	BootTime time.Time
	// PhysBits, if not 0, is what CPUID says of the width of physical
	// addresses, at most 46.
	PhysBits int
	// V2 offers no more than x86-64-v2 where the host has x86-64-v3, AVX2
	// among it. The word v2 in the environment's GVMSPAWN_CPU does the same.
	V2 bool
	// SMM, if not nil, gives the CPUs System Management Mode.
	SMM *SMM
	// Trace, if set, is told of what Tracing selects, without a final newline,
	// on the CPUs' threads. It is slow.
	Trace   func(format string, args ...any)
	Tracing TraceKind
	// NoTranslator leaves everything to the interpreter.
	NoTranslator bool
	// Warn, if set, is told once that hot code cannot be translated on this
	// host, and why, and once that the file behind a window is not there any more.
	Warn func(format string, args ...any)
	// Log, if set, is told of unsupported instructions, once an opcode.
	Log func(format string, args ...any)
}

// VM is a machine of software CPUs. It implements vcpu.VM.
type VM struct {
	mem      *mem.Memory
	io       vcpu.IO
	cpus     []*CPU
	topology vcpu.Topology
	regions  []region
	windows  []*mem.Region
	features features
	trace    func(string, ...any)
	tracing  TraceKind
	log      func(string, ...any)
	warn     func(string, ...any)

	windowNoted atomic.Bool
	rngMu       sync.Mutex // guards rng
	rng         *rand.PCG
	bootTime    time.Time // when the clock was 0; the host's time if zero
	clock       bus.Clock
	life        sync.RWMutex   // held to reach a CPU from outside; Close takes it
	hostClock   *bus.HostClock // nil in deterministic mode
	virtual     *virtualClock  // nil unless deterministic
	timers      []*cpuTimer    // of the local APICs; nil in deterministic mode
	apics       *lapic.Cluster
	ioapic      *ioapic.IOAPIC
	extINT      func() uint8 // acknowledges the 8259 pair's interrupt
	wallClock   atomic.Uint64
	invalid     invalidLog

	smm         *SMM        // nil: none
	smramHidden atomic.Bool // mem.SMRAM is for CPUs in SMM only

	countInsts bool // State.Count is wanted in translated code, too
}

// CPU is one virtual CPU. It implements vcpu.VCPU.
type CPU struct {
	s     *State
	vm    *VM
	id    int
	bit   uint64 // 1 << id
	arena []byte
	// asleep: its thread is in sleep, and Exit may still be zero.
	asleep atomic.Bool

	blockCache
	jit  *translator // nil: interpreter only
	mode decode.Mode
	exc  exception
	blk  *block
	// ip and next are the addresses of the running generic instruction and
	// of the one behind it.
	ip, next    uint64
	stackAccess bool // a non-canonical address raises #SS, not #GP
	halted      bool
	shadow      bool // interrupts are held off until the next block is done
	waiting     bool // for SIPI
	nmiBlocked  bool
	intrWaiting bool // an interrupt waits for IF
	noCache     bool
	maxOps      int
	pauses      uint

	slots                 [tlbSlots]slot
	slot                  *slot
	slotTime              uint64
	tlbMode, walkMode     int
	emptyTLB              uint64 // address of a translation buffer without entries
	dataBreaks            bool   // DR7 enables a data breakpoint, or the debugger one: all accesses are slow
	aligning              bool   // accesses of user mode that are not aligned raise #AC
	breakHits             uint64 // data and I/O breakpoints that the instruction met
	trapDue               bool   // SYSRET has set TF
	localGen, globalGen   uint64
	lastGlobal            bool
	jump                  [jumpSize]jumpEntry
	making                making
	native                nativeArgs
	thunks                thunks
	star, lstar, cstar    uint64
	fmask, kernelGS       uint64
	sysenterCS            uint64
	sysenterESP           uint64
	sysenterEIP           uint64
	apic                  *lapic.APIC
	tscOffset             atomic.Uint64
	tscAdjust             uint64
	tscAux, pat, specCtrl uint64
	pvclock               uint64
	pvVersion             uint32
	mtrrs                 [28]uint64

	smm      bool // in System Management Mode
	smmNMI   bool // nmiBlocked before
	shutdown bool // the instruction was a shutdown
	smbase   uint32
	debug    *debugger       // nil: none
	cuts     map[uint16]bool // offsets of its breakpoints, which the cached blocks respect; or nil

	trail       [trailSize]trailEvent
	trailLen    uint
	noticeMu    sync.Mutex // guards the fields below, but for noticesDone
	notices     []notice
	tooMany     bool
	tooManyFrom uint64 // CPUs whose noticeTag was lost
	noticesDone []notice
}

// New makes a machine. The CPUs are in the state after RESET; the boot CPU
// runs from there or from what SetRegisters gives it.
func New(cfg Config) (*VM, error) {
	if cfg.CPUs < 1 || cfg.CPUs > 64 {
		return nil, fmt.Errorf("software CPU: %d CPUs asked for, 1 to 64 are possible", cfg.CPUs)
	}
	topology := vcpu.Topology{CPUs: cfg.CPUs, Sockets: cfg.Sockets, Threads: cfg.Threads}
	if !topology.Valid() {
		return nil, fmt.Errorf("software CPU: %d CPUs cannot be divided into %d sockets with %d threads a core", cfg.CPUs, cfg.Sockets, cfg.Threads)
	}
	if cfg.Deterministic && cfg.CPUs != 1 {
		return nil, errors.New("software CPU: deterministic runs have one CPU")
	}
	vm := &VM{mem: cfg.Memory, io: cfg.IO, features: newFeatures(cfg.V2 || option("v2")), log: cfg.Log, warn: cfg.Warn,
		bootTime: cfg.BootTime, topology: topology, smm: cfg.SMM}
	seed := [2]uint64{cfg.Seed, cfg.Seed}
	if !cfg.Deterministic {
		var b [16]byte
		_, _ = crand.Read(b[:]) // never fails
		seed = [2]uint64{binary.LittleEndian.Uint64(b[:]), binary.LittleEndian.Uint64(b[8:])}
	}
	vm.windows = windowsOf(cfg.Memory)
	vm.rng = rand.NewPCG(seed[0], seed[1])
	for _, r := range cfg.Memory.Regions() {
		if r.Kind == mem.Flash {
			continue // its chip serves every access, which costs less here than showing it
		}
		pages, err := newSlab[pageInfo](int(r.Size() >> 12))
		if err != nil {
			_ = vm.Close()
			return nil, err
		}
		vm.regions = append(vm.regions, region{uint64(r.Base), r.Size(), uint64(r.HostAddr()), r.Kind, pages})
	}
	if cfg.Trace != nil {
		vm.trace, vm.tracing = cfg.Trace, cfg.Tracing
	}
	cfg.Memory.OnWatchedWrite(vm.deviceWrote)
	if cfg.PhysBits != 0 {
		vm.features.physBits = uint32(cfg.PhysBits)
	}
	if cfg.Deterministic {
		vm.virtual = &virtualClock{vm: vm}
		vm.clock = vm.virtual
	} else {
		vm.hostClock = bus.NewHostClock()
		vm.clock = vm.hostClock
	}
	if err := vm.newAPICs(); err != nil {
		_ = vm.Close()
		return nil, err
	}
	for i := range cfg.CPUs {
		c, err := newCPU(vm, i)
		if err != nil {
			_ = vm.Close()
			return nil, err
		}
		vm.cpus = append(vm.cpus, c)
	}
	if !cfg.NoTranslator {
		vm.startTranslators(cfg.Warn)
	}
	for _, c := range vm.cpus {
		var err error
		if c.blockCache, err = newBlockCache(c.jit != nil, cfg.CPUs); err != nil {
			_ = vm.Close()
			return nil, err
		}
	}
	return vm, nil
}

func newCPU(vm *VM, id int) (*CPU, error) {
	s, arena, err := newArena()
	if err != nil {
		return nil, err
	}
	c := &CPU{s: s, vm: vm, id: id, bit: 1 << id, arena: arena, maxOps: maxOps,
		pat: 0x0007040600070406, apic: vm.apics.APIC(id)}
	s.Deadline = bus.Never
	c.smbase = resetSMBASE
	c.initTLBs()
	c.resetRegisters()
	c.waiting = id != 0
	c.halted = c.waiting
	return c, nil
}

// Name is "soft".
func (vm *VM) Name() string { return "soft" }

// Level is 1 to 3 for the level of x86-64 that the CPUs have (psABI §3.1.1).
func (vm *VM) Level() int {
	switch {
	case vm.features.v3:
		return 3
	case vm.features.sse4:
		return 2
	}
	return 1
}

// CPUs is the number of virtual CPUs.
func (vm *VM) CPUs() int { return len(vm.cpus) }

// VCPU returns CPU i.
func (vm *VM) VCPU(i int) vcpu.VCPU { return vm.cpus[i] }

// Close frees the CPUs. Every Run has returned before.
func (vm *VM) Close() error {
	vm.life.Lock()
	defer vm.life.Unlock()
	for _, t := range vm.timers {
		t.close()
	}
	for _, c := range vm.cpus {
		if c.jit != nil {
			c.jit.free()
			c.jit = nil
		}
		c.thunks.code.free()
		c.blockCache.release()
		freeArena(c.arena)
		c.s, c.arena = nil, nil
	}
	for i := range vm.regions {
		vm.regions[i].pages.release()
	}
	vm.cpus, vm.regions = nil, nil
	return nil
}

func (vm *VM) random() uint64 {
	vm.rngMu.Lock()
	defer vm.rngMu.Unlock()
	return vm.rng.Uint64()
}

// Clock is the machine's time: executed instructions of a deterministic
// machine, else the host's monotonic clock.
func (vm *VM) Clock() bus.Clock { return vm.clock }

// Instructions is how many instructions all CPUs have executed. It is exact
// while none runs.
func (vm *VM) Instructions() uint64 {
	n := uint64(0)
	for _, c := range vm.cpus {
		n += c.s.Count
	}
	return n
}

// Run executes guest code until something needs the machine's attention.
func (c *CPU) Run() (vcpu.Exit, error) {
	if c.vm.timers != nil {
		c.vm.timers[c.id].attach(c)
	}
	return c.loop(), nil
}

// Kick makes the present or the next Run return ExitKick.
func (c *CPU) Kick() { c.notify(exitKick) }

// NMI delivers a non-maskable interrupt.
func (c *CPU) NMI() error {
	c.apic.NMI()
	return nil
}

// clearExit takes reasons back and reports whether any of them was set.
func (c *CPU) clearExit(reason uint32) bool {
	return atomic.AndUint32(&c.s.Exit, ^reason)&reason != 0
}

// events handles what State.Exit asks for, and waits while the CPU is halted.
func (c *CPU) events() (vcpu.Exit, bool) {
	for {
		if c.s.Count >= c.s.Deadline {
			c.vm.virtual.checkpoint(c)
			c.vm.virtual.expire()
		}
		x := atomic.LoadUint32(&c.s.Exit)
		if x&exitFlush != 0 {
			c.clearExit(exitFlush)
			c.takeNotices()
			continue
		}
		if x&exitKick != 0 {
			c.clearExit(exitKick)
			return vcpu.Exit{Reason: vcpu.ExitKick}, true
		}
		if x&exitIntr != 0 && (c.halted || !c.debug.stepping()) {
			c.clearExit(exitIntr)
			c.vm.noteWindows()
			if ex, stop, done := c.interrupts(); done {
				atomic.OrUint32(&c.s.Exit, exitIntr) // there may be more
				return ex, stop
			}
			continue
		}
		if x&exitTimer != 0 {
			c.timerExpired()
			continue
		}
		if !c.halted {
			return vcpu.Exit{}, false
		}
		if v := c.vm.virtual; v == nil || !v.skip() {
			c.sleep()
		}
	}
}

// inject delivers an external interrupt.
func (c *CPU) inject(vec uint8) (vcpu.Exit, bool) {
	if c.vm.tracing&TraceInt != 0 {
		c.vm.trace("cpu %d interrupt %d rip %#x", c.id, vec, c.s.RIP)
	}
	c.remember(trailInterrupt, vec, 0)
	e := exception{vec: vec}
	if c.interrupt(e) {
		return vcpu.Exit{}, false
	}
	return c.except()
}

// flushPCID drops the non-global translations of a PCID.
func (c *CPU) flushPCID(pcid uint64) {
	for i := range c.slots {
		if c.slots[i].pcid == pcid {
			for m := range c.slots[i].modes {
				c.slots[i].modes[m].flushLocal()
			}
		}
	}
	c.localGen++
}

// Registers reads the architectural state.
func (c *CPU) Registers(r *vcpu.Registers) error {
	s := c.s
	copy(r.GPR[:], s.R[:16])
	r.RIP, r.RFLAGS = s.RIP, s.rflags()
	copy(r.Seg[:], s.Seg[:6])
	r.LDTR, r.TR, r.GDT, r.IDT = s.Seg[segLDTR], s.Seg[segTR], s.GDT, s.IDT
	r.CR0, r.CR2, r.CR3, r.CR4, r.CR8, r.EFER = s.CR0, s.CR2, s.CR3, s.CR4, c.readCR8(), s.EFER
	return nil
}

// SetRegisters replaces the architectural state.
func (c *CPU) SetRegisters(r *vcpu.Registers) error {
	s := c.s
	copy(s.R[:16], r.GPR[:])
	s.RIP = r.RIP
	s.Flags = r.RFLAGS &^ flagsArith
	s.setArith(r.RFLAGS)
	copy(s.Seg[:6], r.Seg[:])
	s.Seg[segLDTR], s.Seg[segTR], s.GDT, s.IDT = r.LDTR, r.TR, r.GDT, r.IDT
	s.CR0, s.CR2, s.CR3, s.CR4, s.EFER = r.CR0|cr0ET, r.CR2, r.CR3, r.CR4, r.EFER
	if s.CR0&cr0PG != 0 && s.EFER&eferLME != 0 {
		s.EFER |= eferLMA
	}
	s.CPL = 0
	if c.protected() {
		s.CPL = r.Seg[vcpu.SS].Attr >> 5 & 3
	}
	c.halted = c.waiting
	c.writeCR8(r.CR8)
	c.flushTLB()
	c.switchCR3(true)
	c.setMode()
	return nil
}
