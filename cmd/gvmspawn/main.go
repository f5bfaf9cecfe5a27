// Command gvmspawn boots a directory or a disk image as a virtual machine.
package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/arg"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/firmware"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/logging"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/nsresource"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/terminal"
)

func main() { os.Exit(run(os.Args, os.Stdin, os.Stdout, os.Stderr)) }

// exitFailure is the exit status of every error of ours.
const exitFailure = 1

// command is one call of the program.
type command struct {
	name           string // as which we were called
	stdin          io.Reader
	stdout, stderr io.Writer
}

// run is the program. It returns the exit status: the guest's if it sent one,
// 1 after an error of ours or a crash of the guest, else 0.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if terminal.RunGuard() || nsresource.RunHolder() {
		return 0
	}
	c := &command{"gvmspawn", stdin, stdout, stderr}
	if len(args) > 0 {
		c.name = filepath.Base(args[0])
		args = args[1:]
	}
	status, err := c.main(args)
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", c.name, err)
		return exitFailure
	}
	return status
}

func (c *command) main(args []string) (int, error) {
	if v := c.verb(args); v != nil {
		return v.run(c, args[1:])
	}
	s := newSettings()
	if err := s.parse(args); err != nil {
		return exitFailure, err
	}
	switch {
	case s.help:
		return 0, c.help(s)
	case s.version:
		fmt.Fprintf(c.stdout, "gvmspawn %s\n", version())
		return 0, nil
	case s.list == "firmware":
		return 0, c.listFirmware()
	case s.list == "firmware-features":
		_, err := fmt.Fprintln(c.stdout, strings.Join(firmware.FeatureNames, "\n"))
		return 0, err
	case s.describe:
		return 0, c.describeFirmware(s)
	}
	status, err := c.spawn(s)
	if err != nil && len(s.args) > 0 && len(args) == len(s.args) {
		err = fmt.Errorf("%w ('%s' is no command of %s and was taken as a kernel argument, see --help)", err, arg.Printable(args[0]), c.name)
	}
	return status, err
}

// version is the module's version, and the commit it was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "(unknown)"
	}
	v := info.Main.Version
	for _, kv := range info.Settings {
		if kv.Key == "vcs.revision" && v == "(devel)" {
			v += " " + kv.Value[:min(len(kv.Value), 12)]
		}
	}
	return v
}

// logSettings reads the environment's wishes for messages, and says what is
// wrong with them.
func (c *command) logSettings() logging.Settings {
	ls, problems := logging.FromEnvironment(os.Getenv, isTerminal(c.stderr))
	for _, p := range problems {
		fmt.Fprintln(c.stderr, p)
	}
	return ls
}
