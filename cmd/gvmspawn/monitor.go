package main

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/arg"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/screen"
	"github.com/gvmspawn/gvmspawn/vmm"
)

// monitorCommand is a command of the monitor of --console=native.
type monitorCommand struct {
	names string // separated by spaces, the first is shown
	help  string
	run   func(r *session, m *vmm.Machine, w io.Writer) error
}

// monitorCommands are all of them, in the order of help.
func monitorCommands() []monitorCommand {
	control := func(f func(remote) error) func(*session, *vmm.Machine, io.Writer) error {
		return func(r *session, _ *vmm.Machine, _ io.Writer) error { return f(remote{r}) }
	}
	inspect := func(what string) func(*session, *vmm.Machine, io.Writer) error {
		return func(_ *session, m *vmm.Machine, w io.Writer) error { return m.Inspect(what, w) }
	}
	link := func(up bool) func(*session, *vmm.Machine, io.Writer) error {
		return func(_ *session, m *vmm.Machine, _ io.Writer) error { return m.SetLink(up) }
	}
	return []monitorCommand{
		{"stop s", "stop the CPUs", control(remote.Pause)},
		{"cont c", "let them go on", control(remote.Resume)},
		{"system_powerdown powerdown", "press the power button", func(_ *session, m *vmm.Machine, _ io.Writer) error { return m.PowerButton() }},
		{"system_reset reset", "reset the machine", control(remote.Reboot)},
		{"nmi", "send a non-maskable interrupt", func(_ *session, m *vmm.Machine, _ io.Writer) error { return m.NMI() }},
		{"set_link off", "pull the network cable", link(false)},
		{"set_link on", "plug it in again", link(true)},
		{"quit q", "end the machine at once", control(remote.Terminate)},
		{"screendump", "show what the console shows, as text", monitorScreen},
		{"info status", "whether the machine runs", func(r *session, _ *vmm.Machine, w io.Writer) error {
			_, word := remote{r}.Status()
			fmt.Fprintf(w, "VM status: %s\n", word)
			return nil
		}},
		{"info machine", "what the machine is made of", monitorMachine},
		{"info registers", "the CPUs' registers", inspect("registers")},
		{"info mem", "what is at which address and port", inspect("mem")},
		{"info pci", "the PCI functions", inspect("pci")},
		{"info virtio", "the virtio devices, their status and queues", inspect("virtio")},
		{"info irq", "interrupt lines and message-signalled interrupts", inspect("irq")},
		{"info memory", "how much memory the guest has and uses", monitorMemory},
		{"info stats", "memory and threads of this program", monitorStats},
	}
}

func monitorMachine(r *session, m *vmm.Machine, w io.Writer) error {
	engine, why := m.Engine()
	fmt.Fprintf(w, "name: %s\nengine: %s %s\nCPUs: %d\nRAM: %d MiB\nimage: %s\ncommand line: %s\n", r.name, engine, why, r.cfg.CPUs, r.cfg.RAM>>20, r.image.Path, r.cfg.Boot.CommandLine)
	for _, s := range r.cfg.Shares {
		fmt.Fprintf(w, "share %s: %s\n", s.Tag, s.Path)
	}
	for _, d := range r.cfg.Disks {
		fmt.Fprintf(w, "disk: %s\n", d.Path)
	}
	for _, n := range r.cfg.NICs {
		fmt.Fprintf(w, "network card: %s\n", n.MAC)
	}
	if cid := r.cid(); cid != 0 {
		fmt.Fprintf(w, "vsock CID: %d\n", cid)
	}
	return nil
}

func monitorScreen(r *session, _ *vmm.Machine, w io.Writer) error {
	if r.hub == nil {
		return errors.New("there is no console")
	}
	columns, rows := r.term.Size()
	if columns == 0 || rows == 0 {
		columns, rows = 80, 25
	}
	s := screen.New(int(columns), int(rows))
	s.Write(r.hub.Past()) //nolint:errcheck // never fails
	_, err := io.WriteString(w, s.String())
	return err
}

func monitorStats(r *session, _ *vmm.Machine, w io.Writer) error {
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	fmt.Fprintf(w, "heap: %d KiB in use, %d KiB from the system\ngarbage collections: %d, paused for %v\ngoroutines: %d\n",
		s.HeapInuse>>10, s.Sys>>10, s.NumGC, time.Duration(s.PauseTotalNs), runtime.NumGoroutine())
	return nil
}

// monitor answers a line typed to the monitor.
func (r *session) monitor(line string, w io.Writer) {
	line = strings.Join(strings.Fields(line), " ")
	if line == "help" || line == "?" || line == "info" {
		for _, c := range monitorCommands() {
			name, _, _ := strings.Cut(c.names, " ")
			if c.whole() {
				name = c.names
			}
			fmt.Fprintf(w, "%-18s %s\n", name, c.help)
		}
		return
	}
	for _, c := range monitorCommands() {
		if !c.is(line) {
			continue
		}
		m, err := remote{r}.current()
		if err == nil {
			err = c.run(r, m, w)
		}
		if err != nil {
			fmt.Fprintf(w, "Error: %v\n", err)
		}
		return
	}
	if line != "" {
		fmt.Fprintf(w, "Unknown command %s, try help.\n", arg.Printable(line))
	}
}

// whole reports whether names is one name of two words.
func (c monitorCommand) whole() bool {
	return strings.HasPrefix(c.names, "info ") || strings.HasPrefix(c.names, "set_link ")
}

// is reports whether the line is the command or a short form of it.
func (c monitorCommand) is(line string) bool {
	if c.whole() {
		return c.names == line
	}
	for name := range strings.FieldsSeq(c.names) {
		if name == line {
			return true
		}
	}
	return false
}
