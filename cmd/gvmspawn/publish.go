package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/arg"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/control"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/identity"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/instance"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/journal"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/sshkey"
	"github.com/gvmspawn/gvmspawn/vmm"
)

// claim takes the machine's runtime directory. A name that we chose ourselves
// gives way to a running machine; one that the user chose cannot. Without a
// usable runtime directory the machine runs, but cannot be listed or reached.
func (r *session) claim() error {
	base, err := instance.Base()
	if err == nil {
		r.instance, err = r.claimName(base)
	}
	if errors.Is(err, instance.ErrRunning) {
		return fmt.Errorf("a machine named '%s' is running already, choose another name with -M", r.name)
	}
	if err != nil {
		r.log.Warn("There is no runtime directory, so the machine cannot be listed, stopped or reached by name", "error", pathError(err))
		r.instance = nil
	}
	return nil
}

// release gives the runtime directory back.
func (r *session) release() {
	if r.instance == nil {
		return
	}
	if err := r.instance.Close(); err != nil {
		r.log.Warn("Cannot remove the runtime directory", "error", pathError(err))
	}
}

// mostNames is how often a derived name is counted up.
const mostNames = 1000

func (r *session) claimName(base string) (*instance.Instance, error) {
	i, err := instance.Claim(base, r.name)
	if r.s.machine != "" {
		return i, err
	}
	for n := 2; errors.Is(err, instance.ErrRunning) && n < mostNames; n++ {
		suffix := "-" + strconv.Itoa(n)
		name := r.name[:min(len(r.name), 64-len(suffix))] + suffix
		if arg.MachineName(name) != nil {
			break
		}
		if i, err = instance.Claim(base, name); err == nil {
			r.name = name
		}
	}
	return i, err
}

// passSSHKey makes a key pair and lets its owner in as every user of the guest
// (systemd-ssh-generator(8)).
func (r *session) passSSHKey() error {
	if !r.s.passSSHKey || r.s.vsock == arg.No || r.instance == nil {
		return nil
	}
	pair, err := sshkey.Generate(r.s.sshKeyType, "gvmspawn "+r.name)
	if err != nil {
		return err
	}
	if r.keyPath, err = pair.Write(r.instance.Dir, r.name+"-"+pair.Type); err != nil {
		return fmt.Errorf("cannot store the SSH key: %w", pathError(err))
	}
	const id = "ssh.ephemeral-authorized_keys-all"
	if err := r.s.credentials.AddDefault(id, pair.AuthorizedKey); err != nil {
		return err
	}
	// For distributions whose own sshd@.service knows nothing of the credential.
	return r.s.credentials.AddDefault("systemd.unit-dropin.sshd-vsock@.service", []byte("[Service]\nExecStart=\n"+
		"ExecStart=-sshd -i -o 'AuthorizedKeysFile=%d/"+id+" .ssh/authorized_keys'\nImportCredential="+id+"\n"))
}

// openJournal has the guest's journald send its journal to us, to the host's
// vsock port that is the guest's CID.
func (r *session) openJournal() (err error) {
	if r.s.forwardJournal == "" {
		return nil
	}
	if r.journal, err = journal.Open(r.s.forwardJournal, r.name, r.s.journalLimits, r.log); err != nil {
		return err
	}
	if r.vhost != nil {
		if err := r.vhost.listen(r.cid(), r.journal.Serve); err != nil {
			return fmt.Errorf("option --forward-journal: %w", err)
		}
	}
	return r.s.credentials.AddDefault("journal.forward_to_socket", fmt.Appendf(nil, "vsock:2:%d", r.cid()))
}

func (r *session) closeJournal() {
	if r.journal != nil {
		r.journal.Close()
	}
}

// publish makes the machine known: its state for "gvmspawn list", its control
// socket for machinectl. What is returned undoes it.
func (r *session) publish() func() {
	if r.instance == nil {
		return func() {}
	}
	r.control = control.New(remote{r})
	stop, err := r.control.Listen(r.instance.Path(instance.ControlSocket), version())
	if err != nil {
		stop = func() {}
	}
	state := instance.State{Name: r.name, PID: os.Getpid(), Image: r.image.Path, CID: r.cid(), SSHKey: r.keyPath, Started: time.Now()}
	if perr := r.instance.Publish(state); err == nil {
		err = perr
	}
	if err != nil {
		r.log.Warn("The machine cannot be listed, stopped or reached by name", "error", pathError(err))
	}
	return stop
}

// cid is the guest's vsock context ID, 0 without vsock.
func (r *session) cid() uint32 {
	switch {
	case r.s.vsock == arg.No:
		return 0
	case r.vhost != nil:
		return r.vhost.cid
	case r.s.vsockCID != 0:
		return r.s.vsockCID
	}
	return identity.CID(r.name, 0)
}

// emit tells the subscribers of the control socket.
func (r *session) emit(name string) {
	if r.control != nil {
		r.control.Emit(name, nil)
	}
}

// remote is a session as its control socket sees it.
type remote struct{ r *session }

func (c remote) current() (*vmm.Machine, error) {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	if c.r.machine == nil {
		return nil, vmm.ErrNotRunning
	}
	return c.r.machine, nil
}

func (c remote) Terminate() error { c.r.cancel(); return nil }

func (c remote) PowerOff() error {
	if _, err := c.current(); err != nil {
		return err
	}
	c.r.stop("Asked over the control socket")
	return nil
}

func (c remote) Reboot() error {
	m, err := c.current()
	if err != nil {
		return err
	}
	c.r.mu.Lock()
	c.r.rebooting = true
	c.r.mu.Unlock()
	c.r.emit(control.EventReset)
	m.Kill()
	return nil
}

func (c remote) Pause() error  { return c.pause(true, (*vmm.Machine).Pause, control.EventStop) }
func (c remote) Resume() error { return c.pause(false, (*vmm.Machine).Resume, control.EventResume) }

func (c remote) pause(paused bool, f func(*vmm.Machine) error, event string) error {
	m, err := c.current()
	if err == nil {
		err = f(m)
	}
	if err != nil {
		return err
	}
	c.r.mu.Lock()
	changed := c.r.paused != paused
	c.r.paused = paused
	c.r.mu.Unlock()
	if changed {
		c.r.emit(event)
	}
	return nil
}

func (c remote) Status() (running bool, word string) {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	switch {
	case c.r.machine == nil:
		return false, "prelaunch"
	case c.r.paused:
		return false, "paused"
	}
	return true, "running"
}

func (c remote) Info() map[string]string {
	info := map[string]string{"cpus": strconv.Itoa(c.r.cfg.CPUs), "ram": strconv.FormatUint(c.r.cfg.RAM>>20, 10) + " MiB", "guest": c.r.guestStatus(), "command-line": c.r.cfg.Boot.CommandLine}
	if m, err := c.current(); err == nil {
		info["engine"], _ = m.Engine()
	}
	return info
}
