package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/term"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/getopt"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/logging"
)

// isTerminal reports whether w is a terminal.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// help shows the options, through a pager on a terminal.
func (c *command) help(s *settings) error {
	var b bytes.Buffer
	style, bold, width := getopt.Style{}, "", 80
	if ls, _ := logging.FromEnvironment(os.Getenv, isTerminal(c.stdout)); ls.Color {
		style, bold = getopt.Style{Heading: "\x1b[0;1;4m", Reset: "\x1b[0m"}, "\x1b[0;1m"
	}
	if f, ok := c.stdout.(*os.File); ok {
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
			width = min(w, 120)
		}
	}
	fmt.Fprintf(&b, "%s [OPTIONS...] [ARGUMENTS...]\n\n%sBoot a directory or a disk image as a virtual machine.%s\n\n"+
		"ARGUMENTS are appended to the kernel command line.\n", c.name, bold, style.Reset)
	fmt.Fprintf(&b, "\n%sCommands:%s\n", style.Heading, style.Reset)
	for _, v := range verbs() {
		fmt.Fprintf(&b, "  %-34s %s\n", v.name+" "+v.arguments, v.help)
	}
	s.table().WriteHelp(&b, style, width)
	fmt.Fprintf(&b, "\nSee the gvmspawn(1) man page for details.\n")
	if !s.noPager && isTerminal(c.stdout) && c.page(b.Bytes()) {
		return nil
	}
	_, err := c.stdout.Write(b.Bytes())
	return err
}

// page shows text in the user's pager and reports whether that worked.
func (c *command) page(text []byte) bool {
	candidates := []string{"less", "more"}
	for _, name := range []string{"SYSTEMD_PAGER", "PAGER"} {
		if v, ok := os.LookupEnv(name); ok {
			if v == "" || v == "cat" {
				return false
			}
			candidates = append([]string{v}, candidates...)
			break
		}
	}
	for _, p := range candidates {
		argv := strings.Fields(p)
		if len(argv) == 0 {
			continue
		}
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Env = append(os.Environ(), "LESS="+lessOptions(), "LESSSECURE=1")
		cmd.Stdout, cmd.Stderr = c.stdout, c.stderr
		cmd.Stdin = bytes.NewReader(text)
		if err := cmd.Start(); err != nil {
			continue
		}
		cmd.Wait() //nolint:errcheck // a pager that the user quit has a status too
		return true
	}
	return false
}

// lessOptions are what systemd's tools give to less.
func lessOptions() string {
	if v := os.Getenv("SYSTEMD_LESS"); v != "" {
		return v
	}
	return "FRSXMK"
}
