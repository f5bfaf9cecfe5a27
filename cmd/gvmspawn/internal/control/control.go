// Package control is a machine's control socket: the varlink interface
// io.systemd.MachineInstance that machinectl and "gvmspawn stop" use, and
// io.gvmspawn.Machine for what is ours.
package control

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"sync"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/varlink"
)

// Machine is what the socket controls. Methods may be called from any goroutine.
type Machine interface {
	// Terminate ends the machine at once.
	Terminate() error
	// PowerOff presses its power button.
	PowerOff() error
	// Reboot resets it.
	Reboot() error
	Pause() error
	Resume() error
	// Status is whether its CPUs run, and a word: "running", "paused" or "prelaunch".
	Status() (running bool, word string)
	Disks
	// Memory and SetMemory read and change how much memory it has.
	Memory(context.Context) (Memory, error)
	SetMemory(bytes uint64) error
	// ReclaimMemory gives the guest's free memory back to the host and returns how
	// many bytes.
	ReclaimMemory(context.Context) (uint64, error)
	// Info is what "gvmspawn status" shows, by name.
	Info() map[string]string
}

// Events of SubscribeEvents, as QEMU names them.
const (
	EventStop     = "STOP"
	EventResume   = "RESUME"
	EventReset    = "RESET"
	EventShutdown = "SHUTDOWN"
	EventReady    = "GUEST_READY"

	// eventSubscribed is the first that a subscriber gets, whatever its filter.
	eventSubscribed = "READY"
)

const instanceDescription = `# Control of one running machine
interface io.systemd.MachineInstance

# Ends the machine at once
method Terminate() -> ()
# Asks the guest to power off, by its ACPI power button
method PowerOff() -> ()
# Resets the machine
method Reboot() -> ()
# Stops the virtual CPUs
method Pause() -> ()
# Lets them go on
method Resume() -> ()
method Describe() -> (running: bool, status: string)
# The same, as systemd 261 calls it
method QueryStatus() -> (running: bool, status: string)
# With "more": first the event READY with ready set, then the others
method SubscribeEvents(filter: ?[]string) -> (event: ?string, data: ?object, ready: ?bool)

# Plugs a volume in, as a raw disk; the configuration is a type of disk
method AddStorage(fileDescriptorIndex: int, name: string, config: ?string) -> ()
# Asks the guest to let go of it
method RemoveStorage(name: string) -> ()
method ReplaceStorage(fileDescriptorIndex: int, name: string) -> ()

error NotConnected ()
error NotSupported ()
error NoSuchStorage ()
error StorageExists ()
error StorageImmutable ()
error BadConfig ()
`

const ownDescription = `# What io.systemd.MachineInstance lacks
interface io.gvmspawn.Machine

# Facts about the machine, for people
method GetInfo() -> (info: [string]string)
# Bytes of memory: at boot, at most, as they should be, as they are; and what the guest tells
method GetMemory() -> (boot: int, max: int, target: int, current: int, guest: ?[string]int)
# Plugs memory in, or takes some away, until the guest has that many bytes
method SetMemory(size: int) -> ()
# Gives the guest's free memory back to the host, by free page hinting: how many bytes
method ReclaimMemory() -> (reclaimed: int)

error MemoryRefused (reason: string)
error DiskRefused (reason: string)
`

// Errors of io.systemd.MachineInstance.
const (
	errNotConnected = "io.systemd.MachineInstance.NotConnected"
)

// Service serves a machine's control socket.
type Service struct {
	m Machine

	mu          sync.Mutex // guards subscribers
	subscribers map[chan event]bool
}

type event struct {
	Event string         `json:"event,omitempty"`
	Data  map[string]any `json:"data,omitempty"`
	Ready bool           `json:"ready,omitempty"`
}

// New returns a service for a machine.
func New(m Machine) *Service { return &Service{m: m, subscribers: map[chan event]bool{}} }

// Listen makes the socket and serves it until the function that is returned
// is called, which removes it.
func (s *Service) Listen(path, version string) (stop func(), err error) {
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("cannot make the control socket: %w", err)
	}
	mode := os.FileMode(0o600)
	if os.Geteuid() == 0 {
		mode = 0o666 // polkit decides about others
	}
	if err := os.Chmod(path, mode); err != nil {
		l.Close()
		return nil, err
	}
	server := &varlink.Server{Product: "gvmspawn", Version: version, Allow: authorized, Trusted: fromOwner, Methods: s.methods(),
		Interfaces: map[string]string{"io.systemd.MachineInstance": instanceDescription, "io.gvmspawn.Machine": ownDescription, disksInterface: disksDescription}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(ctx, l)
	}()
	return func() {
		l.Close()
		cancel()
		<-done
	}, nil
}

func (s *Service) methods() map[string]varlink.Handler {
	simple := func(f func() error) varlink.Handler {
		return func(_ context.Context, c *varlink.Call) (any, error) {
			if err := c.Parameters(&struct{}{}); err != nil {
				return nil, err
			}
			if err := f(); err != nil {
				return nil, &varlink.Error{Name: errNotConnected}
			}
			return nil, nil
		}
	}
	const i = "io.systemd.MachineInstance."
	all := map[string]varlink.Handler{
		i + "Terminate": simple(s.m.Terminate), i + "PowerOff": simple(s.m.PowerOff), i + "Reboot": simple(s.m.Reboot),
		i + "Pause": simple(s.m.Pause), i + "Resume": simple(s.m.Resume), i + "Describe": s.queryStatus, i + "QueryStatus": s.queryStatus, i + "SubscribeEvents": s.subscribe,
		"io.gvmspawn.Machine.GetMemory": s.getMemory, "io.gvmspawn.Machine.SetMemory": s.setMemory,
		"io.gvmspawn.Machine.ReclaimMemory": s.reclaimMemory,
		"io.gvmspawn.Machine.GetInfo":       func(context.Context, *varlink.Call) (any, error) { return map[string]any{"info": s.m.Info()}, nil },
	}
	maps.Copy(all, s.diskMethods())
	return all
}

func (s *Service) queryStatus(context.Context, *varlink.Call) (any, error) {
	running, word := s.m.Status()
	return map[string]any{"running": running, "status": word}, nil
}

// maxEvents is how many events wait for a slow subscriber; more are dropped.
const maxEvents = 64

func (s *Service) subscribe(ctx context.Context, c *varlink.Call) (any, error) {
	var in struct {
		Filter []string `json:"filter"`
	}
	if err := c.Parameters(&in); err != nil {
		return nil, err
	}
	if !c.More() {
		return nil, &varlink.Error{Name: varlink.ErrExpectedMore}
	}
	events := make(chan event, maxEvents)
	s.mu.Lock()
	s.subscribers[events] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.subscribers, events)
		s.mu.Unlock()
	}()
	if err := c.Continue(event{Event: eventSubscribed, Ready: true}); err != nil {
		return nil, err
	}
	for {
		select {
		case e := <-events:
			if len(in.Filter) > 0 && !slices.Contains(in.Filter, e.Event) {
				continue
			}
			if err := c.Continue(e); err != nil {
				return nil, err
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Emit tells all subscribers of an event. It never blocks.
func (s *Service) Emit(name string, data map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.subscribers {
		select {
		case c <- event{Event: name, Data: data}:
		default:
		}
	}
}

// Call calls a method of io.systemd.MachineInstance without parameters.
func Call(ctx context.Context, socket, method string) error {
	c, err := varlink.Dial(ctx, socket)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Call(ctx, "io.systemd.MachineInstance."+method, nil, nil)
}

// Query returns a machine's status and the facts about it.
func Query(ctx context.Context, socket string) (word string, info map[string]string, err error) {
	c, err := varlink.Dial(ctx, socket)
	if err != nil {
		return "", nil, err
	}
	defer c.Close()
	var status struct {
		Status string `json:"status"`
	}
	if err := c.Call(ctx, "io.systemd.MachineInstance.QueryStatus", nil, &status); err != nil {
		return "", nil, err
	}
	var out struct {
		Info map[string]string `json:"info"`
	}
	if err := c.Call(ctx, "io.gvmspawn.Machine.GetInfo", nil, &out); err != nil {
		return status.Status, nil, err
	}
	return status.Status, out.Info, nil
}

// Subscribe calls f with the name of each event until ctx or the machine ends.
func Subscribe(ctx context.Context, socket string, f func(name string)) error {
	c, err := varlink.Dial(ctx, socket)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	return c.CallMore(ctx, "io.systemd.MachineInstance.SubscribeEvents", nil, func(raw json.RawMessage) error {
		var e event
		if err := json.Unmarshal(raw, &e); err != nil {
			return err
		}
		if !e.Ready {
			f(e.Event)
		}
		return nil
	})
}
