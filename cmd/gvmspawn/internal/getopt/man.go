package getopt

import (
	"fmt"
	"io"
	"strings"
)

// roff escapes text for a manual page.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "…", "...").Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}

// WriteMan writes the options as sections of a manual page, man(7).
func (t Table) WriteMan(w io.Writer) {
	for _, g := range t {
		printed := false
		for i := range g.Options {
			o := &g.Options[i]
			if o.Hidden {
				continue
			}
			if !printed {
				fmt.Fprintf(w, ".SS %s\n", roff(g.Title))
				printed = true
			}
			writeManOption(w, o)
		}
	}
}

func writeManOption(w io.Writer, o *Option) {
	io.WriteString(w, ".TP\n")
	if o.Short != 0 {
		fmt.Fprintf(w, "\\fB\\-%c\\fR", o.Short)
		if o.Arg != "" && !o.Optional {
			fmt.Fprintf(w, " \\fI%s\\fR", roff(o.Arg))
		}
		io.WriteString(w, ", ")
	}
	fmt.Fprintf(w, "\\fB%s\\fR", roff("--"+o.Long))
	switch {
	case o.Arg != "" && o.Optional:
		fmt.Fprintf(w, "[=\\fI%s\\fR]", roff(o.Arg))
	case o.Arg != "":
		fmt.Fprintf(w, "=\\fI%s\\fR", roff(o.Arg))
	}
	fmt.Fprintf(w, "\n%s.\n", roff(o.Help))
	for para := range strings.SplitSeq(strings.TrimSpace(o.Doc), "\n\n") {
		if para != "" {
			fmt.Fprintf(w, ".IP\n%s\n", roff(strings.Join(strings.Fields(para), " ")))
		}
	}
	if o.Own {
		io.WriteString(w, ".IP\nThis option is gvmspawn's own; systemd\\-vmspawn does not have it.\n")
	}
}
