package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/arg"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/consolehub"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/control"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/instance"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/journal"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/logging"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/notify"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/swtpm"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/terminal"
	"github.com/gvmspawn/gvmspawn/vmm"
)

// notifyPort is the host's vsock port for the guest's notifications, as the
// guest learns from a credential. Our vsock being our own, no other program
// can have taken it, but the journal's port is the guest's CID.
func (r *session) notifyPort() uint32 {
	if r.vhost != nil {
		return r.vhost.notify.Port()
	}
	const port = 9999
	if r.cid() == port {
		return port + 1
	}
	return port
}

// notifyTimeout is how long a guest may take to send one notification.
const notifyTimeout = 30 * time.Second

// session is a machine from its first boot to its end, over reboots.
type session struct {
	*plan
	log      *slog.Logger
	messages *messages
	colors   logging.Settings
	term     *terminal.Terminal
	hub      *consolehub.Hub // nil: no console
	input    *vmm.Input      // nil: none
	manager  notify.Manager
	cancel   context.CancelFunc // kills the machine
	done     <-chan struct{}    // closed when the session ends
	instance *instance.Instance // nil: no runtime directory
	control  *control.Service   // nil: not published
	keyPath  string             // of the private SSH key, "" for none
	journal  *journal.Receiver  // nil: not forwarded
	tpm      *swtpm.TPM         // nil: none
	debugger *vmm.Debugger      // nil: none
	vhost    *vhost             // nil: the guest's vsock is ours
	printed  uint64             // bytes on the console when the last boot ended
	silent   int                // boots since then without any
	booted   bool               // this is not the first boot
	// guestLimit is for messages that the guest can cause.
	guestLimit *logging.Limit

	mu         sync.Mutex // guards what follows
	machine    *vmm.Machine
	stopping   bool
	paused     bool
	rebooting  bool   // somebody asked for a reset
	guest      string // what the guest last said about itself
	memory     uint64 // what the guest should have, in bytes; 0: what it starts with
	exitStatus int    // as the guest reported, 0 if it did not
	attached   attached
}

// spawn runs a machine to its end and returns the exit status.
func (c *command) spawn(s *settings) (int, error) {
	manager, fds := notify.FromEnvironment(), listenFDs()
	status, err := c.spawnFor(s, manager, fds)
	if err != nil {
		var errno unix.Errno
		if !errors.As(err, &errno) {
			errno = unix.EIO
		}
		manager.Send(fmt.Sprintf("ERRNO=%d", int(errno))) //nolint:errcheck // the error itself is reported
		return status, err
	}
	if err := manager.Send(fmt.Sprintf("EXIT_STATUS=%d", status), "STATUS=VM terminated."); err != nil {
		fmt.Fprintf(c.stderr, "%s: %v\n", c.name, err)
	}
	return status, nil
}

func (c *command) spawnFor(s *settings, manager notify.Manager, fds []passed) (int, error) {
	p, err := newPlan(s)
	if err != nil {
		return exitFailure, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	r := &session{plan: p, manager: manager, cancel: cancel, done: ctx.Done(), messages: &messages{w: c.stderr}, colors: c.logSettings(), guestLimit: logging.GuestLimit()}
	defer r.close()
	r.log = logging.New(r.colors, r.messages)
	for _, o := range s.late {
		r.log.Warn(warnLate(o))
	}
	r.usePassed(fds, r.log)
	if err := r.claim(); err != nil {
		return exitFailure, err
	}
	defer r.release()
	defer r.closeJournal()
	defer func() { r.vhost.close() }()
	for _, f := range []func() error{r.passSSHKey, r.openVHost, r.connectVsock, r.openJournal} {
		if err := f(); err != nil {
			return exitFailure, err
		}
	}
	if err := r.assemble(r.log); err != nil {
		return exitFailure, err
	}
	defer r.closeTPM()
	if err := r.openTPM(ctx); err != nil {
		return exitFailure, err
	}
	if err := r.openDebugger(); err != nil {
		return exitFailure, err
	}
	defer r.closeDebugger(exitFailure)
	defer r.watchSignals()()
	defer r.publish()()
	unregister, err := r.register()
	if err != nil {
		return exitFailure, err
	}
	defer unregister()
	go r.watchSuspend(ctx)
	r.welcome(c)
	if err := r.openConsole(ctx, c); err != nil {
		return exitFailure, err
	}
	defer r.closeConsole(c)
	_, err = r.run(ctx)
	r.closeConsole(c)
	if err != nil {
		return exitFailure, err
	}
	status := r.status()
	r.closeDebugger(status)
	if status != 0 {
		r.log.Info(fmt.Sprintf("Non-zero exit code received: %d", status))
	}
	return status, nil
}

// messages is where messages of ours go: the standard error, past the
// terminal while that is in raw mode.
type messages struct {
	mu sync.Mutex // guards w
	w  io.Writer
}

func (m *messages) Write(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.w.Write(p)
}

func (m *messages) redirect(w io.Writer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.w = w
}

// openConsole takes the terminal over.
func (r *session) openConsole(ctx context.Context, c *command) (err error) {
	o := terminal.Options{ReadOnly: r.s.console == "read-only", Reset: r.colors.Color, Guard: true, Decor: r.decor()}
	if r.s.console == "native" {
		o.Monitor = r.monitor
	}
	if r.s.console == "headless" {
		r.term, err = terminal.Open(nil, io.Discard, terminal.Options{ReadOnly: true})
	} else {
		r.term, err = terminal.Open(c.stdin, c.stdout, o)
	}
	if err != nil {
		return err
	}
	if r.s.console != "headless" {
		r.openHub(o.ReadOnly)
	}
	r.messages.redirect(r.term.Lines(c.stderr))
	r.term.OnResize(r.resize)
	go r.watchTerminal(ctx)
	return nil
}

// openHub lets others attach to the console ("gvmspawn console").
func (r *session) openHub(readOnly bool) {
	var in io.Reader
	if !readOnly {
		in = r.term
	}
	r.hub = consolehub.New(r.term, in)
	r.input = vmm.NewInput(r.hub)
	if r.instance == nil {
		return
	}
	if _, err := r.hub.Listen(r.instance.Path(instance.ConsoleSocket)); err != nil {
		r.log.Warn("Nobody can attach to the console", "error", pathError(err))
	}
}

// output is where the guest's console goes.
func (r *session) output() io.Writer {
	if r.hub != nil {
		return r.hub
	}
	return r.term
}

// decor is how the window shows the machine, if the terminal is one that can.
func (r *session) decor() terminal.Decor {
	var d terminal.Decor
	if t := os.Getenv("TERM"); !r.colors.Color || t == "" || t == "dumb" || t == "linux" {
		return d
	}
	enabled := func(name string) bool {
		b, err := arg.Bool(os.Getenv(name))
		return err != nil || b
	}
	d.Background = r.s.background
	d.Tint = !r.s.backgroundSet && enabled("SYSTEMD_TINT_BACKGROUND")
	if enabled("SYSTEMD_ADJUST_TERMINAL_TITLE") {
		host, _ := os.Hostname()
		d.Title = "Virtual Machine " + r.name + " on " + host
		if enabled("SYSTEMD_EMOJI") {
			d.Title = "🟢 " + d.Title
		}
	}
	return d
}

// closeConsole gives the terminal back.
func (r *session) closeConsole(c *command) {
	r.messages.redirect(c.stderr)
	if r.hub != nil {
		r.hub.Close()
	}
	if err := r.term.Close(); err != nil {
		r.log.Warn("Cannot restore the terminal", "error", err)
	}
}

// welcome says what is about to happen.
func (r *session) welcome(c *command) {
	if r.s.quiet {
		return
	}
	w := r.messages
	fmt.Fprintf(w, "░ Spawning VM %s on %s.\n", r.name, r.image.Path)
	switch {
	case r.s.console == "native":
		fmt.Fprintf(w, "░ Press Ctrl-a x to kill VM, Ctrl-a c for the monitor.\n")
	case r.s.console == "interactive" && isTerminal(c.stdin):
		fmt.Fprintf(w, "░ Press Ctrl-] three times within 1s to kill VM.\n")
	}
	if r.debugger != nil {
		fmt.Fprintf(w, "░ The VM waits for gdb: %s\n", r.gdbHint())
	}
}

// connectVsock gives the guest the address for its notifications.
func (r *session) connectVsock() error {
	if r.s.vsock == arg.No {
		return nil
	}
	return r.s.credentials.AddDefault("vmm.notify_socket", fmt.Appendf(nil, "vsock-stream:2:%d", r.notifyPort()))
}

// vsock is the machine's vsock device, or nil.
func (r *session) vsock() *vmm.Vsock {
	if r.s.vsock == arg.No {
		return nil
	}
	v := &vmm.Vsock{CID: r.cid(), VHost: r.vhost.machine(), Accept: map[uint32]func(net.Conn){r.notifyPort(): r.guestNotifies}}
	if r.journal != nil {
		v.Accept[r.cid()] = r.journal.Serve
	}
	if r.instance != nil {
		v.Mux = r.instance.Path(instance.VsockSocket)
	}
	return v
}

// guestNotifies reads one notification of the guest and acts on it.
func (r *session) guestNotifies(c net.Conn) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(notifyTimeout)) //nolint:errcheck // then the guest only holds one connection
	m, err := notify.Read(c)
	if err != nil {
		r.warnAboutGuest("Ignoring a notification of the guest", "error", err)
		return
	}
	if m.Bad != "" {
		r.warnAboutGuest("Ignoring a field of a notification that cannot be parsed", "field", m.Bad)
	}
	r.mu.Lock()
	if m.ExitStatus >= 0 {
		r.exitStatus = m.ExitStatus
	}
	if m.Status != "" {
		r.guest = m.Status
	}
	machine := r.machine
	r.mu.Unlock()
	if m.Ready && machine != nil {
		machine.Ready()
	}
	if m.Ready {
		r.emit(control.EventReady)
	}
	var fields []string
	if m.Ready && r.s.notifyReady {
		fields = append(fields, "READY=1")
	}
	switch {
	case m.Status != "":
		fields = append(fields, "STATUS=VM running: "+m.Status)
	case m.Ready:
		fields = append(fields, "STATUS=VM running.")
	}
	if len(fields) > 0 {
		r.tell(fields...)
	}
}

// warnAboutGuest logs what the guest did wrong, but not for ever.
func (r *session) warnAboutGuest(message string, args ...any) {
	if r.guestLimit.Allow() {
		r.log.Warn(message, args...)
	}
}

// tell sends to our service manager and logs a failure. What a guest says
// makes us call it, so failures are limited, too.
func (r *session) tell(fields ...string) {
	if err := r.manager.Send(fields...); err != nil {
		r.warnAboutGuest(err.Error())
	}
}

// guestStatus is what the guest last said about itself.
func (r *session) guestStatus() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.guest
}

func (r *session) status() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.exitStatus
}

// run boots the machine until it ends for another reason than a reboot.
func (r *session) run(ctx context.Context) (vmm.End, error) {
	stop := r.feedWatchdog()
	defer stop()
	for {
		end, err := r.boot(ctx)
		if err != nil || !r.reboots(ctx, end) {
			return end, err
		}
		if err := r.checkSilence(); err != nil {
			return vmm.EndCrash, err
		}
		r.log.Debug("The guest reboots.")
	}
}

// silentBoots is how often a machine with a console may reset without having
// printed anything. Its kernel panics before it has found the console.
const silentBoots = 3

// checkSilence ends a machine that resets again and again and says nothing.
func (r *session) checkSilence() error {
	if r.hub == nil || r.hub.Written() != r.printed {
		r.silent = 0
	} else {
		r.silent++
	}
	if r.hub != nil {
		r.printed = r.hub.Written()
	}
	if r.silent < silentBoots {
		return nil
	}
	return errors.New("the guest resets again and again without a word on its console; --console-transport=serial may show why")
}

// reboots decides whether the machine starts anew after a run's end. The new
// boot owes nothing to the old one's exit status.
func (r *session) reboots(ctx context.Context, end vmm.End) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	asked := r.rebooting && end == vmm.EndKilled && ctx.Err() == nil
	r.rebooting, r.paused = false, false
	if r.stopping || end != vmm.EndReboot && !asked {
		return false
	}
	r.exitStatus, r.guest = 0, ""
	return true
}

// boot is one boot of the machine.
func (r *session) boot(ctx context.Context) (vmm.End, error) {
	r.dropGoing()
	r.mu.Lock()
	cfg := r.cfg
	r.mu.Unlock()
	cfg.DiskRemoved = r.diskRemoved
	cfg.Vsock = r.vsock()
	nics, err := duplicateTAPs(cfg.NICs)
	if err != nil {
		return vmm.EndCrash, err
	}
	cfg.NICs = nics
	cfg.Console = vmm.Console{Transport: consoleTransport(r.s), Out: r.output(), In: r.input, SerialToo: r.serialToo()}
	cfg.Console.Columns, cfg.Console.Rows = r.term.Size()
	m, err := vmm.New(cfg)
	if err != nil {
		return vmm.EndCrash, err
	}
	defer m.Close()
	defer func() { r.booted = true }()
	if name, why := m.Engine(); why != "" && !r.s.quiet && !r.booted {
		r.log.Log(ctx, logging.LevelNotice, why, "engine", name)
	}
	r.mu.Lock()
	r.machine = m
	if r.memory != 0 {
		m.SetMemory(r.memory) //nolint:errcheck // it was possible before
	}
	if r.stopping {
		r.cancel()
	}
	r.mu.Unlock()
	r.started(cfg.Vsock != nil)
	end, err := m.Run(ctx)
	r.mu.Lock()
	r.machine = nil
	r.mu.Unlock()
	return end, err
}

// started tells our manager that the machine exists.
func (r *session) started(guestWillNotify bool) {
	fields := []string{"STATUS=VM started.", fmt.Sprintf("X_VMSPAWN_LEADER_PID=%d", os.Getpid())}
	if !r.s.notifyReady || !guestWillNotify {
		fields = append(fields, "READY=1")
	}
	r.tell(fields...)
}

func consoleTransport(s *settings) vmm.ConsoleTransport {
	switch {
	case s.console == "headless":
		return vmm.ConsoleNone
	case s.transport == "serial":
		return vmm.ConsoleSerial
	}
	return vmm.ConsoleVirtio
}

// feedWatchdog pings our manager's watchdog, if it has one.
func (r *session) feedWatchdog() (stop func()) {
	every := r.manager.WatchdogInterval()
	if every == 0 {
		return func() {}
	}
	t := time.NewTicker(every)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-t.C:
				r.tell("WATCHDOG=1")
			case <-done:
				t.Stop()
				return
			}
		}
	}()
	return func() { close(done) }
}

// resize passes the window's size on to the guest.
func (r *session) resize(columns, rows uint16) {
	r.mu.Lock()
	m := r.machine
	r.mu.Unlock()
	if m != nil {
		m.Resize(columns, rows)
	}
}
