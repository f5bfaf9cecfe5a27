package main

import (
	"errors"
	"os"
	"slices"
	"strings"
)

// maxCommandLine is COMMAND_LINE_SIZE of x86 Linux, with the NUL.
const maxCommandLine = 2048

// commandLine builds the kernel command line: the console, the boot entry's
// options, the user's arguments, the root file system (vmspawn's order). With
// serialToo the serial port is a console until hvc0 has its driver.
func (s *settings) commandLine(options, root []string, serialToo bool) (string, error) {
	var words []string
	device := map[string]string{"virtio": "hvc0", "serial": "ttyS0"}[s.transport]
	if s.console != "headless" {
		if t := os.Getenv("TERM"); validTerm(t) {
			words = append(words, "TERM="+t, "systemd.tty.term."+device+"="+t)
		}
		if serialToo {
			words = append(words, "console=ttyS0")
		}
		words = append(words, "console="+device)
	}
	// A kernel that panics resets the machine at once, instead of standing
	// still for ever, unless the user's panic= says otherwise.
	words = append(words, "panic=-1")
	// Linux tests each algorithm of its crypto API at boot, signatures and key
	// exchanges with them: a third of a small machine's start. The host's kernel
	// has done that on this CPU. Linux tests all the same with fips=1, and so it
	// does if the user says cryptomgr.notests=0.
	words = append(words, "cryptomgr.notests")
	if s.ram.Max > s.ram.Size {
		// Else Linux leaves the memory that it is given unused, until somebody
		// tells it. Movable memory can be taken back.
		words = append(words, "memhp_default_state=online_movable")
	}
	words = append(append(append(words, options...), s.args...), root...)
	line := strings.Join(words, " ")
	if len(line) >= maxCommandLine {
		return "", errors.New("the kernel command line is longer than 2047 bytes, give fewer arguments")
	}
	return line, nil
}

// validTerm reports whether t can be the guest's $TERM, too.
func validTerm(t string) bool {
	return t != "" && t != "unknown" && len(t) < 64 &&
		strings.Trim(t, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-+._") == ""
}

// words are the boot entry's options and the user's kernel arguments.
func (p *plan) words() []string {
	words := slices.Clone(p.options)
	for _, a := range p.s.args {
		words = append(words, strings.Fields(a)...)
	}
	return words
}

// argument returns the value of the last kernel argument NAME=VALUE, and
// whether there is one.
func (p *plan) argument(name string) (value string, found bool) {
	for _, w := range p.words() {
		if v, ok := strings.CutPrefix(w, name+"="); ok {
			value, found = v, true
		}
	}
	return value, found
}

// hasWord reports whether word is one of the kernel arguments.
func (p *plan) hasWord(word string) bool { return slices.Contains(p.words(), word) }

// rootWords are the arguments that say what the root file system is.
var rootWords = []string{"root", "rootfstype", "rootflags", "ro", "rw", "resume", "roothash", "mount.usr", "mount.usrfstype", "mount.usrflags", "usrhash"}

// withoutRoot drops them from a boot entry's options: they are about the disk
// that the entry was made for.
func withoutRoot(options []string) []string {
	return slices.DeleteFunc(slices.Clone(options), func(o string) bool {
		name, _, _ := strings.Cut(o, "=")
		return slices.Contains(rootWords, name)
	})
}
