package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/arg"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/consolehub"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/control"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/getopt"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/instance"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/sshclient"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/terminal"
)

// verb is a command about machines that run already. A kernel argument of the
// same name has to follow an option or "--".
type verb struct {
	name, arguments, help string
	machines              bool // the first argument is a machine
	run                   func(c *command, args []string) (int, error)
}

// verbs are all of them; the table is made by a function because they refer to
// it themselves.
func verbs() []verb {
	return []verb{
		{"list", "", "List the running machines", false, (*command).listMachines},
		{"status", "NAME", "Show what is known about a machine", true, (*command).showStatus},
		{"stop", "[-f] NAME", "Power a machine off, or kill it, and wait for its end", true, (*command).stopMachine},
		{"memory", "NAME [BYTES]", "Show how much memory a machine has, or change it: up to the maximum of --ram=, down by its balloon", true, (*command).machineMemory},
		{"reclaim-memory", "NAME", "Give the memory that is free in a machine back to the host, and print how much: for guests that do not report it by themselves", true, (*command).reclaimMemory},
		{"attach-disk", "NAME [-r] [-i ID] [FORMAT:][TYPE:]PATH", "Plug a disk into a machine (-r: read-only) and print its name", true, (*command).attachDisk},
		{"detach-disk", "NAME ID", "Ask the guest to let go of a disk", true, (*command).detachDisk},
		{"list-disks", "NAME", "List the disks of a machine", true, (*command).listDisks},
		{"ssh", "[-t] [USER@]NAME [COMMAND...]", "Log in to a machine, or run a command in it", true, (*command).ssh},
		{"console", "NAME", "Attach to a machine's console; ^] three times within a second leaves it", true, (*command).attachConsole},
		{"connect", "NAME PORT", "Connect standard input and output with a vsock port of a machine", true, (*command).connect},
		{"firmware", "list | vars PATH", "List the firmware of this host, or the EFI variables in a file", false, (*command).firmware},
		{"completion", "bash|zsh|fish", "Print a completion script for a shell", false, (*command).completion},
		{"man", "", "Print the manual page", false, (*command).man},
	}
}

// verb returns the verb that the arguments begin with. Under the name of
// systemd-vmspawn there are none.
func (c *command) verb(args []string) *verb {
	if len(args) == 0 || strings.Contains(c.name, "vmspawn") && !strings.Contains(c.name, "gvmspawn") {
		return nil
	}
	for _, v := range verbs() {
		if v.name == args[0] {
			return &v
		}
	}
	return nil
}

// queryTimeout is how long a machine may take to say how it is.
const queryTimeout = 3 * time.Second

// status asks a machine how it is.
func status(dir string) (word string, info map[string]string) {
	ctx, cancel := context.WithTimeout(context.Background(), queryTimeout)
	defer cancel()
	word, info, err := control.Query(ctx, filepath.Join(dir, instance.ControlSocket))
	if err != nil {
		return "unresponsive", nil
	}
	return word, info
}

func (c *command) listMachines(args []string) (int, error) {
	if len(args) > 0 {
		return exitFailure, errors.New("list takes no arguments")
	}
	base, err := instance.Base()
	if err != nil {
		return exitFailure, err
	}
	machines, err := instance.List(base)
	if err != nil {
		return exitFailure, pathError(err)
	}
	w := tabwriter.NewWriter(c.stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "MACHINE\tSTATE\tPID\tCID\tSINCE\tIMAGE")
	for _, m := range machines {
		word, _ := status(filepath.Join(base, m.Name))
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\t%s\n", m.Name, word, m.PID, m.CID, m.Started.Local().Format("2006-01-02 15:04:05"), arg.Printable(m.Image))
	}
	return 0, w.Flush()
}

// machine finds the running machine that is the first argument.
func machine(what string, args []string) (instance.State, string, error) {
	if len(args) == 0 {
		return instance.State{}, "", fmt.Errorf("%s needs the name of a machine, see 'gvmspawn list'", what)
	}
	base, err := instance.Base()
	if err != nil {
		return instance.State{}, "", err
	}
	return instance.Open(base, args[0])
}

func (c *command) showStatus(args []string) (int, error) {
	m, dir, err := machine("status", args)
	if err != nil {
		return exitFailure, err
	}
	word, info := status(dir)
	fmt.Fprintf(c.stdout, "%s\n", m.Name)
	rows := [][2]string{{"state", word}, {"since", m.Started.Local().Format(time.DateTime)}, {"leader", fmt.Sprint(m.PID)}, {"image", arg.Printable(m.Image)}}
	if m.CID != 0 {
		rows = append(rows, [2]string{"vsock CID", fmt.Sprint(m.CID)})
	}
	if m.SSHKey != "" {
		rows = append(rows, [2]string{"ssh key", m.SSHKey})
	}
	var names []string
	for k := range info {
		names = append(names, k)
	}
	sort.Strings(names)
	for _, k := range names {
		rows = append(rows, [2]string{k, info[k]})
	}
	for _, row := range rows {
		if row[1] != "" {
			fmt.Fprintf(c.stdout, "%14s: %s\n", row[0], row[1])
		}
	}
	return 0, nil
}

// stopPatience is how long "gvmspawn stop" waits before it says so.
const stopPatience = 3 * time.Second

func (c *command) stopMachine(args []string) (int, error) {
	force := false
	var table = getopt.Table{{Title: "Options", Options: []getopt.Option{{Long: "force", Short: 'f', Help: "Kill the machine", Set: flag(&force)}}}}
	args, err := table.Parse(args)
	if err != nil {
		return exitFailure, err
	}
	_, dir, err := machine("stop", args)
	if err != nil {
		return exitFailure, err
	}
	ctx, cancel := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer cancel()
	method := "PowerOff"
	if force {
		method = "Terminate"
	}
	if err := control.Call(ctx, filepath.Join(dir, instance.ControlSocket), method); err != nil {
		return exitFailure, fmt.Errorf("cannot stop machine '%s': %w", args[0], err)
	}
	slow := time.AfterFunc(stopPatience, func() {
		fmt.Fprintf(c.stderr, "Waiting for machine '%s' to power off; 'gvmspawn stop --force %s' kills it.\n", args[0], args[0])
	})
	defer slow.Stop()
	if err := instance.Wait(ctx, dir); err != nil {
		return exitFailure, fmt.Errorf("machine '%s' is still running: %w", args[0], err)
	}
	return 0, nil
}

func (c *command) attachConsole(args []string) (int, error) {
	m, dir, err := machine("console", args)
	if err != nil {
		return exitFailure, err
	}
	t, err := terminal.Open(c.stdin, c.stdout, terminal.Options{Guard: true, Reset: true})
	if err != nil {
		return exitFailure, err
	}
	defer t.Close()
	ctx, cancel := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer cancel()
	go func() {
		<-t.Events()
		cancel()
	}()
	if err := consolehub.Attach(ctx, filepath.Join(dir, instance.ConsoleSocket), t, t); err != nil {
		return exitFailure, fmt.Errorf("machine '%s' has no console to attach to: %w", m.Name, err)
	}
	return 0, nil
}

func (c *command) connect(args []string) (int, error) {
	if len(args) != 2 {
		return exitFailure, errors.New("connect needs the name of a machine and a port")
	}
	port, err := strconv.ParseUint(args[1], 10, 32)
	if err != nil {
		return exitFailure, fmt.Errorf("expected a port instead of %s", arg.Printable(args[1]))
	}
	m, dir, err := machine("connect", args)
	if err != nil {
		return exitFailure, err
	}
	conn, err := sshclient.DialMux(context.Background(), filepath.Join(dir, instance.VsockSocket), uint32(port))
	if err != nil {
		return exitFailure, fmt.Errorf("cannot connect to port %d of machine '%s': %w", port, m.Name, err)
	}
	defer conn.Close()
	go func() {
		io.Copy(conn, c.stdin) //nolint:errcheck // what the guest sends still counts
		if u, ok := conn.(*net.UnixConn); ok {
			u.CloseWrite() //nolint:errcheck // the same
		}
	}()
	if _, err := io.Copy(c.stdout, conn); err != nil {
		return exitFailure, err
	}
	return 0, nil
}

// sshTimeout is how long a guest may take to let us in.
const sshTimeout = 30 * time.Second

func (c *command) ssh(args []string) (int, error) {
	user, tty := "root", false
	table := getopt.Table{{Title: "Options", Options: []getopt.Option{
		{Long: "login", Short: 'l', Arg: "USER", Help: "User to log in as", Set: value(&user, valid(arg.UserName))},
		{Long: "tty", Short: 't', Help: "Give the command a terminal", Set: flag(&tty)},
	}}}
	args, err := table.Parse(args)
	if err != nil {
		return exitFailure, err
	}
	if len(args) > 0 {
		if u, name, found := strings.Cut(args[0], "@"); found {
			user, args[0] = u, name
		}
	}
	m, dir, err := machine("ssh", args)
	if err != nil {
		return exitFailure, err
	}
	if m.SSHKey == "" {
		return exitFailure, fmt.Errorf("machine '%s' was started without an SSH key, see --pass-ssh-key= and --vsock=", m.Name)
	}
	key, err := readKey(m.SSHKey)
	if err != nil {
		return exitFailure, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), sshTimeout)
	defer cancel()
	conn, err := sshclient.DialMux(ctx, filepath.Join(dir, instance.VsockSocket), sshclient.Port)
	if err != nil {
		return exitFailure, fmt.Errorf("machine '%s' does not accept SSH connections, is sshd installed there and running: %w", m.Name, err)
	}
	client, err := sshclient.Login(ctx, conn, user, key)
	if err != nil {
		return exitFailure, err
	}
	defer client.Close()
	return sshclient.Run(client, strings.Join(args[1:], " "), tty, sshclient.Streams{In: c.stdin, Out: c.stdout, Err: c.stderr})
}

// readKey reads a private key.
func readKey(path string) (ssh.Signer, error) {
	private, err := os.ReadFile(path)
	if err != nil {
		return nil, pathError(err)
	}
	key, err := ssh.ParsePrivateKey(private)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}
