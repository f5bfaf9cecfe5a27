package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/sshclient"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/suspend"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/terminal"
	"github.com/gvmspawn/gvmspawn/vmm"
)

// sigPowerOff is SIGRTMIN+4, which asks systemd's programs to power off. The
// kernel's first real-time signal is 32; the C library keeps two for itself.
const sigPowerOff = unix.Signal(34 + 4)

func (r *session) isStopping() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stopping
}

// watchSignals makes signals stop the machine. A SIGHUP that was ignored when
// we started, as under nohup, stays ignored.
func (r *session) watchSignals() (stop func()) {
	c := make(chan os.Signal, 4)
	signals := []os.Signal{unix.SIGINT, unix.SIGTERM, sigPowerOff}
	if !signal.Ignored(unix.SIGHUP) {
		signals = append(signals, unix.SIGHUP)
	}
	signal.Notify(c, signals...)
	signal.Ignore(unix.SIGPIPE)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case s := <-c:
				r.stop(fmt.Sprintf("Received %v", s))
			case <-done:
				signal.Stop(c)
				return
			}
		}
	}()
	return func() { close(done) }
}

// watchTerminal makes the escape keys and a lost terminal stop the machine.
func (r *session) watchTerminal(ctx context.Context) {
	for {
		select {
		case e := <-r.term.Events():
			if e == terminal.Kill {
				r.cancel()
				return
			}
			if !r.isStopping() {
				r.stop("The terminal is gone")
			}
		case <-ctx.Done():
			return
		}
	}
}

// stop powers the machine off: by its power button at first, by force when
// asked again, when the button does not exist or after the time-out.
func (r *session) stop(why string) {
	r.mu.Lock()
	again, m := r.stopping, r.machine
	r.stopping = true
	r.mu.Unlock()
	switch {
	case again:
		r.announce(why + " again, killing the machine.")
		r.cancel()
	case m == nil:
		r.cancel()
	default:
		r.powerOff(m, why)
	}
}

func (r *session) powerOff(m *vmm.Machine, why string) {
	r.announce(why + ", powering the machine off; once more kills it.")
	r.tell("STOPPING=1", "STATUS=VM powering off.")
	if err := m.PowerButton(); err != nil {
		r.announce(fmt.Sprintf("The power button does not work (%v), killing the machine.", err))
		r.cancel()
		return
	}
	go r.insist(m)
}

// buttonPatience is how long we wait for a guest to hear its power button
// before we ask its service manager, and press again: a press before the
// guest listens is lost.
const buttonPatience = 10 * time.Second

// insist sees to it that a machine whose button was pressed powers off: by
// its service manager if there is an SSH key for it, by further presses, and
// by force after the time-out.
func (r *session) insist(m *vmm.Machine) {
	limit := time.Duration(r.s.stopTimeout) * time.Second
	end := time.Now().Add(limit)
	for press := 1; ; press++ {
		pause := buttonPatience
		if limit > 0 {
			pause = min(pause, time.Until(end))
		}
		if !r.wait(pause) {
			return
		}
		if limit > 0 && !time.Now().Before(end) {
			r.announce(fmt.Sprintf("The machine did not power off within %d s, killing it.", r.s.stopTimeout))
			r.cancel()
			return
		}
		if press == 1 && r.keyPath != "" {
			r.announce("The machine does not react to its power button, asking its service manager.")
			go func() {
				if err := r.powerOffBySSH(m); err != nil {
					r.log.Debug("Powering off by SSH failed", "error", err)
				}
			}()
		}
		if err := m.PowerButton(); err != nil {
			return // it has ended
		}
	}
}

// wait reports whether the machine still runs after a time.
func (r *session) wait(d time.Duration) bool {
	select {
	case <-r.done:
		return false
	case <-time.After(d):
		return true
	}
}

// powerOffBySSH asks systemd in the guest to power off.
func (r *session) powerOffBySSH(m *vmm.Machine) error {
	ctx, cancel := context.WithTimeout(context.Background(), sshTimeout)
	defer cancel()
	key, err := readKey(r.keyPath)
	if err != nil {
		return err
	}
	conn, err := m.DialVsock(ctx, sshclient.Port)
	if err != nil {
		return err
	}
	client, err := sshclient.Login(ctx, conn, "root", key)
	if err != nil {
		return err
	}
	defer client.Close()
	_, err = sshclient.Run(client, "systemctl poweroff", false, sshclient.Streams{Out: io.Discard, Err: io.Discard})
	return err
}

func (r *session) announce(message string) {
	if !r.s.quiet {
		r.log.Info(message)
	}
}

// watchSuspend pauses the machine while the host sleeps, so that its clocks do
// not see the gap. Without logind nothing can tell.
func (r *session) watchSuspend(ctx context.Context) {
	ours := false // the pause is ours to end
	err := suspend.Watch(ctx, "gvmspawn "+r.name, func() {
		if running, _ := (remote{r}).Status(); running {
			ours = remote{r}.Pause() == nil
		}
	}, func() {
		if ours {
			remote{r}.Resume() //nolint:errcheck // a machine that has ended
		}
		ours = false
	})
	if err != nil {
		r.log.Debug("The machine will not notice the host's sleep", "error", err)
	}
}
