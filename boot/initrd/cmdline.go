package initrd

import "strings"

// words splits a kernel command line as the kernel does (lib/cmdline.c,
// next_arg): at white space outside of double quotes, which are kept. It ends at
// "--", behind which all words are init's.
func words(line string) []string {
	var out []string
	quoted, start := false, -1
	for i := 0; i <= len(line); i++ {
		space := i == len(line) || !quoted && strings.IndexByte(" \t\n\r\v\f", line[i]) >= 0
		switch {
		case space && start >= 0:
			if line[start:i] == "--" {
				return out
			}
			out = append(out, line[start:i])
			start = -1
		case !space && start < 0:
			start = i
		}
		if i < len(line) && line[i] == '"' {
			quoted = !quoted
		}
	}
	return out
}

// parameter is the value of the last parameter NAME=, or "".
func parameter(line, name string) string {
	value := ""
	for _, w := range words(line) {
		if v, ok := strings.CutPrefix(w, name+"="); ok {
			value = strings.Trim(v, `"`)
		}
	}
	return value
}

// moduleParams collects MODULE.PARAMETER=VALUE words, which modprobe would
// take from /proc/cmdline: module name → "PARAMETER=VALUE …".
func moduleParams(line string) map[string]string {
	params := map[string]string{}
	for _, w := range words(line) {
		key, _, _ := strings.Cut(w, "=")
		name, param, ok := strings.Cut(key, ".")
		if !ok || name == "" || param == "" {
			continue
		}
		name = strings.ReplaceAll(name, "-", "_")
		params[name] = strings.TrimPrefix(params[name]+" "+w[len(name)+1:], " ")
	}
	return params
}
