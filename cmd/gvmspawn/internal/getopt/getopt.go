// Package getopt is a command's options as one table that drives everything:
// parsing by the rules of GNU getopt_long, --help, shell completion and the
// manual page.
//
// Parsing stops at the first argument that is no option, or after "--". Long
// options may be cut to a unique beginning, short ones joined ("-nqD/x"), and
// error messages are getopt's own.
package getopt

import (
	"errors"
	"fmt"
	"strings"
)

// Option is one option of the table.
type Option struct {
	Long    string   // name without dashes
	Short   byte     // one-letter name, or 0
	Aliases []string // further long names, which help does not show
	// Arg is the argument's name in help, "" for an option without one.
	Arg string
	// Optional makes the argument optional: --long[=ARG], -x[ARG].
	Optional bool
	// Hidden leaves the option out of help, completion and manual page.
	Hidden bool
	// Own marks an option that systemd-vmspawn does not have. An abbreviation
	// that is unique but for such options stays unique.
	Own bool

	Help string // one phrase, for --help
	Doc  string // paragraphs for the manual page, after Help's sentence

	// Values are the words that can be completed, and Files says that files
	// ("file") or directories ("dir") can.
	Values []string
	Files  string

	// Set is called for each occurrence, in order. Without an argument it
	// gets "". Its error is reported with the option's name.
	Set func(value string) error
}

// Group is options under a heading of --help.
type Group struct {
	Title   string
	Options []Option
}

// Table is all options of a command.
type Table []Group

// all calls f for every option until it returns false.
func (t Table) all(f func(*Option) bool) {
	for g := range t {
		for i := range t[g].Options {
			if !f(&t[g].Options[i]) {
				return
			}
		}
	}
}

// ErrStop is returned by an option's Set, and then by Parse, to end parsing at
// once, as --help does.
var ErrStop = errors.New("enough options")

// Parse handles the options that args begin with and returns the rest.
// Args do not include the program's name. The error is a message for people,
// to be printed after the program's name.
func (t Table) Parse(args []string) (rest []string, err error) {
	for len(args) > 0 {
		a := args[0]
		switch {
		case a == "--":
			return args[1:], nil
		case len(a) < 2 || a[0] != '-':
			return args, nil
		case a[1] == '-':
			args, err = t.parseLong(args)
		default:
			args, err = t.parseShort(args)
		}
		if err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// Knows reports whether an argument looks like an option of the table, with
// its name in full.
func (t Table) Knows(arg string) bool {
	if name, long := strings.CutPrefix(arg, "--"); long {
		name, _, _ = strings.Cut(name, "=")
		known := false
		t.all(func(o *Option) bool {
			known = known || o.Long == name
			return !known
		})
		return known
	}
	return len(arg) == 2 && arg[0] == '-' && t.short(arg[1]) != nil
}

// parseLong handles args[0], which begins with two dashes.
func (t Table) parseLong(args []string) ([]string, error) {
	name, value, given := strings.Cut(args[0][2:], "=")
	o, err := t.find(name)
	if err != nil {
		return nil, err
	}
	args = args[1:]
	switch {
	case o.Arg == "" && given:
		return nil, fmt.Errorf("option '--%s' doesn't allow an argument", o.Long)
	case o.Arg != "" && !o.Optional && !given:
		if len(args) == 0 {
			return nil, fmt.Errorf("option '--%s' requires an argument", o.Long)
		}
		value, args = args[0], args[1:]
	}
	return args, o.set("--"+o.Long, value)
}

// parseShort handles args[0], one or more short options after a dash.
func (t Table) parseShort(args []string) ([]string, error) {
	letters := args[0][1:]
	args = args[1:]
	for letters != "" {
		c := letters[0]
		letters = letters[1:]
		o := t.short(c)
		if o == nil {
			return nil, fmt.Errorf("invalid option -- '%s'", printable(c))
		}
		value := ""
		if o.Arg != "" {
			value, letters = letters, ""
			if value == "" && !o.Optional {
				if len(args) == 0 {
					return nil, fmt.Errorf("option requires an argument -- '%c'", c)
				}
				value, args = args[0], args[1:]
			}
		}
		if err := o.set("--"+o.Long, value); err != nil {
			return nil, err
		}
	}
	return args, nil
}

// printable is c, escaped if a terminal could not show it.
func printable(c byte) string {
	if c < ' ' || c >= 127 {
		return fmt.Sprintf("\\x%02x", c)
	}
	return string(rune(c))
}

func (t Table) short(c byte) (found *Option) {
	t.all(func(o *Option) bool {
		if o.Short == c {
			found = o
		}
		return found == nil
	})
	return found
}

// find looks a long option up by its name or a unique beginning of it.
func (t Table) find(name string) (*Option, error) {
	var exact *Option
	var matches, foreign []*Option // foreign: not Own
	var names []string
	t.all(func(o *Option) bool {
		hit := false
		for _, n := range append([]string{o.Long}, o.Aliases...) {
			if n == name {
				exact = o
				return false
			}
			if name != "" && strings.HasPrefix(n, name) {
				hit = true
				names = append(names, "'--"+n+"'")
			}
		}
		if hit {
			matches = append(matches, o)
			if !o.Own {
				foreign = append(foreign, o)
			}
		}
		return true
	})
	switch {
	case exact != nil:
		return exact, nil
	case len(matches) == 1:
		return matches[0], nil
	case len(foreign) == 1:
		return foreign[0], nil
	case len(matches) == 0:
		return nil, fmt.Errorf("unrecognized option '--%s'", escape(name))
	}
	return nil, fmt.Errorf("option '--%s' is ambiguous; possibilities: %s", name, strings.Join(names, " "))
}

// escape keeps what a terminal could take for a command out of a message.
func escape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s) && i < 200; i++ {
		if s[i] >= 0x80 {
			b.WriteByte(s[i])
		} else {
			b.WriteString(printable(s[i]))
		}
	}
	return strings.ToValidUTF8(b.String(), "?")
}

// ArgumentError is an argument that an option refuses.
type ArgumentError struct {
	Option string // with its dashes
	Err    error
}

// Error names the option and what is wrong.
func (e *ArgumentError) Error() string { return fmt.Sprintf("option %s: %v", e.Option, e.Err) }

// Unwrap returns the cause.
func (e *ArgumentError) Unwrap() error { return e.Err }

func (o *Option) set(shown, value string) error {
	if o.Set == nil {
		return nil
	}
	if err := o.Set(value); errors.Is(err, ErrStop) {
		return err
	} else if err != nil {
		return &ArgumentError{shown, err}
	}
	return nil
}
