package getopt

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// Style is how WriteHelp shows headings; both strings are "" without colours.
type Style struct{ Heading, Reset string }

// helpColumn is where the explanations of --help begin.
const helpColumn = 31

// WriteHelp writes the options by group, one a line where it fits. Width is
// the terminal's, in columns.
func (t Table) WriteHelp(w io.Writer, s Style, width int) {
	for _, g := range t {
		printed := false
		for i := range g.Options {
			o := &g.Options[i]
			if o.Hidden {
				continue
			}
			if !printed {
				fmt.Fprintf(w, "\n%s%s:%s\n", s.Heading, g.Title, s.Reset)
				printed = true
			}
			writeOption(w, o, max(width, 60))
		}
	}
}

func writeOption(w io.Writer, o *Option, width int) {
	left := "     "
	if o.Short != 0 {
		left = "  -" + string(rune(o.Short))
		if o.Long != "" {
			left += " "
		}
	}
	left += "--" + o.Long + o.argument()
	pad := helpColumn - utf8.RuneCountInString(left)
	if pad < 1 {
		fmt.Fprintln(w, left)
		left, pad = "", helpColumn
	}
	for i, line := range wrap(o.Help, width-helpColumn-1) {
		if i > 0 {
			left, pad = "", helpColumn
		}
		fmt.Fprintf(w, "%s%*s%s\n", left, pad, "", line)
	}
}

// argument is "=ARG", "[=ARG]" or "".
func (o *Option) argument() string {
	switch {
	case o.Arg == "":
		return ""
	case o.Optional:
		return "[=" + o.Arg + "]"
	}
	return "=" + o.Arg
}

// wrap breaks s into lines of at most width columns, where words allow.
func wrap(s string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(s) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
