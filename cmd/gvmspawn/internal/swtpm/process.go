package swtpm

import (
	"os/exec"
	"runtime"
	"syscall"
)

// child makes a process die with us, and not of a ^C that is meant for the guest.
func child() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}

// process is a running child.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // of Wait, valid then
}

// startChild starts c on a thread that lives as long as the child: the kernel
// sends Pdeathsig when the thread that forked ends (prctl(2)).
func startChild(c *exec.Cmd) (*process, error) {
	p := &process{cmd: c, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.Start()
		started <- err
		if err == nil {
			p.err = c.Wait()
			close(p.done)
		}
	}()
	return p, <-started
}

// wait waits for the end.
func (p *process) wait() error {
	<-p.done
	return p.err
}

// over reports whether it has ended.
func (p *process) over() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}
