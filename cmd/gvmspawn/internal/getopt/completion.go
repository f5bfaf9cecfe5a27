package getopt

import (
	"fmt"
	"io"
	"strings"
)

// Verb is a command that may stand in the place of options.
type Verb struct {
	Name, Arguments, Help string
	// Machines completes names of running machines.
	Machines bool
}

// visible calls f for every option that help shows.
func (t Table) visible(f func(*Option)) {
	t.all(func(o *Option) bool {
		if !o.Hidden {
			f(o)
		}
		return true
	})
}

// shellQuote quotes s for sh, bash, zsh and fish: in single quotes.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// WriteBash writes a completion script for bash.
func (t Table) WriteBash(w io.Writer, program string, verbs []Verb) {
	var all, byValue strings.Builder
	t.visible(func(o *Option) {
		if all.Len() > 0 {
			all.WriteByte(' ')
		}
		if o.Short != 0 {
			fmt.Fprintf(&all, "-%c ", o.Short)
		}
		all.WriteString("--" + o.Long)
		if o.Arg == "" {
			return
		}
		names := "--" + o.Long
		if o.Short != 0 {
			names += "|-" + string(rune(o.Short))
		}
		var action string
		switch {
		case o.Files == "dir":
			action = "compopt -o filenames; COMPREPLY=( $(compgen -d -- \"$cur\") )"
		case o.Files == "file":
			action = "compopt -o filenames; COMPREPLY=( $(compgen -f -- \"$cur\")"
			if len(o.Values) > 0 {
				action += " $(compgen -W " + shellQuote(strings.Join(o.Values, " ")) + " -- \"$cur\")"
			}
			action += " )"
		case len(o.Values) > 0:
			action = "COMPREPLY=( $(compgen -W " + shellQuote(strings.Join(o.Values, " ")) + " -- \"$cur\") )"
		default:
			action = "COMPREPLY=()"
		}
		fmt.Fprintf(&byValue, "        %s) %s; return;;\n", names, action)
	})
	var names, machines []string
	for _, v := range verbs {
		names = append(names, v.Name)
		if v.Machines {
			machines = append(machines, v.Name)
		}
	}
	fmt.Fprintf(w, `# bash completion for %[1]s                       -*- shell-script -*-

_%[1]s() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}
    # bash splits --option=value at the =
    if [[ $prev == = ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}; fi
    if [[ $cur == = ]]; then cur=; fi
    case $prev in
        %[2]s) COMPREPLY=( $(compgen -W "$(%[1]s list 2>/dev/null | awk 'NR > 1 { print $1 }')" -- "$cur") ); return;;
%[3]s    esac
    COMPREPLY=( $(compgen -W %[4]s -- "$cur") )
    if [[ $COMP_CWORD -eq 1 && $cur != -* ]]; then
        COMPREPLY+=( $(compgen -W %[5]s -- "$cur") )
    fi
}

complete -F _%[1]s %[1]s
`, program, strings.Join(machines, "|"), byValue.String(), shellQuote(all.String()), shellQuote(strings.Join(names, " ")))
}

// WriteZsh writes a completion script for zsh.
func (t Table) WriteZsh(w io.Writer, program string, verbs []Verb) {
	escape := strings.NewReplacer("[", `\[`, "]", `\]`, ":", `\:`, `\`, `\\`).Replace
	fmt.Fprintf(w, "#compdef %[1]s\n# zsh completion for %[1]s\n\n_%[1]s() {\n", program)
	fmt.Fprintf(w, "    local -a verbs machines\n    verbs=(\n")
	for _, v := range verbs {
		fmt.Fprintf(w, "        %s\n", shellQuote(v.Name+":"+v.Help))
	}
	fmt.Fprintf(w, "    )\n    if (( CURRENT == 2 )) && [[ $words[2] != -* ]]; then _describe -t commands command verbs; fi\n    case $words[2] in\n")
	for _, v := range verbs {
		if v.Machines {
			fmt.Fprintf(w, "        %s) machines=( ${${(f)\"$(%s list 2>/dev/null)\"}[2,-1]%%%% *} ); compadd -a machines; return;;\n", v.Name, program)
		}
	}
	fmt.Fprintf(w, "    esac\n    _arguments -s -S \\\n")
	t.visible(func(o *Option) {
		spec, names := "*", "--"+o.Long
		action := ""
		if o.Arg != "" {
			names += "="
			if o.Optional {
				names += "-"
			}
			action = ":" + escape(o.Arg) + ":"
			switch {
			case o.Files == "dir":
				action += "_files -/"
			case len(o.Values) > 0:
				action += "(" + strings.Join(o.Values, " ") + ")"
			case o.Files == "file":
				action += "_files"
			}
		}
		fmt.Fprintf(w, "        %s \\\n", shellQuote(spec+names+"["+escape(o.Help)+"]"+action))
		if o.Short != 0 {
			fmt.Fprintf(w, "        %s \\\n", shellQuote(spec+"-"+string(rune(o.Short))+plus(o)+"["+escape(o.Help)+"]"+action))
		}
	})
	fmt.Fprintf(w, "        '*::kernel argument:_default'\n}\n\n_%[1]s \"$@\"\n", program)
}

// plus marks a short option whose argument may follow it directly.
func plus(o *Option) string {
	if o.Arg == "" {
		return ""
	}
	return "+"
}

// WriteFish writes a completion script for fish.
func (t Table) WriteFish(w io.Writer, program string, verbs []Verb) {
	fmt.Fprintf(w, "# fish completion for %[1]s\n\nfunction __%[1]s_machines\n    %[1]s list 2>/dev/null | tail -n +2 | string split -f 1 ' '\nend\n\n", program)
	for _, v := range verbs {
		fmt.Fprintf(w, "complete -c %s -n __fish_use_subcommand -f -a %s -d %s\n", program, v.Name, shellQuote(v.Help))
		if v.Machines {
			fmt.Fprintf(w, "complete -c %[1]s -n '__fish_seen_subcommand_from %[2]s' -f -a '(__%[1]s_machines)'\n", program, v.Name)
		}
	}
	t.visible(func(o *Option) {
		fmt.Fprintf(w, "complete -c %s -l %s", program, o.Long)
		if o.Short != 0 {
			fmt.Fprintf(w, " -s %c", o.Short)
		}
		if o.Arg != "" && !o.Optional {
			io.WriteString(w, " -r")
		}
		switch {
		case o.Files == "dir":
			io.WriteString(w, " -f -a '(__fish_complete_directories)'")
		case o.Files == "file":
			io.WriteString(w, " -F")
		default:
			io.WriteString(w, " -f")
		}
		if len(o.Values) > 0 {
			fmt.Fprintf(w, " -a %s", shellQuote(strings.Join(o.Values, " ")))
		}
		fmt.Fprintf(w, " -d %s\n", shellQuote(o.Help))
	})
}
