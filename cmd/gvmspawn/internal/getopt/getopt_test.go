package getopt

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// testTable records what is set.
func testTable(got *[]string) Table {
	rec := func(name string) func(string) error {
		return func(v string) error {
			if v == "bad" {
				return errors.New("refused")
			}
			*got = append(*got, name+"="+v)
			return nil
		}
	}
	return Table{
		{"One", []Option{
			{Long: "quiet", Short: 'q', Set: rec("quiet"), Help: "Be quiet"},
			{Long: "directory", Short: 'D', Arg: "PATH", Set: rec("directory"), Help: "Directory"},
			{Long: "discard", Arg: "BOOL", Set: rec("discard"), Help: "Discard"},
			{Long: "cpus", Aliases: []string{"qemu-smp"}, Arg: "N", Set: rec("cpus"), Help: "CPUs"},
		}},
		{"Two", []Option{
			{Long: "dir-of-ours", Own: true, Set: rec("ours")},
			{Long: "gdb", Arg: "ADDRESS", Optional: true, Short: 'g', Set: rec("gdb")},
			{Long: "network", Short: 'n', Set: rec("network")},
			{Long: "bind", Arg: "X", Set: rec("bind")},
			{Long: "bind-ro", Arg: "X", Set: rec("bind-ro")},
		}},
	}
}

// TestParse: the rules of getopt_long with a leading "+".
func TestParse(t *testing.T) {
	for _, c := range []struct{ args, set, rest, err string }{
		{"", "", "", ""},
		{"-q a -q", "quiet=", "a -q", ""},
		{"-q -- -q", "quiet=", "-q", ""},
		{"-", "", "-", ""},
		{"--directory /x --directory=/y", "directory=/x directory=/y", "", ""},
		{"-D/x -D /y", "directory=/x directory=/y", "", ""},
		{"-D=/x", "directory==/x", "", ""},
		{"-nqD/x y", "network= quiet= directory=/x", "y", ""},
		{"-nqD /x y", "network= quiet= directory=/x", "y", ""},
		{"--directory=", "directory=", "", ""},
		{"--directory --quiet", "directory=--quiet", "", ""},
		{"--qui", "quiet=", "", ""},
		{"--dir=/x", "directory=/x", "", ""}, // unique but for an option of ours
		{"--dir-", "ours=", "", ""},
		{"--qemu-smp=2", "cpus=2", "", ""},
		{"--qemu=2", "cpus=2", "", ""},
		{"--bind=x", "bind=x", "", ""},
		{"--gdb x", "gdb=", "x", ""},
		{"--gdb=x", "gdb=x", "", ""},
		{"-gx -g y", "gdb=x gdb=", "y", ""},
		{"--di=x", "", "", "option '--di' is ambiguous; possibilities: '--directory' '--discard' '--dir-of-ours'"},
		{"--nope", "", "", "unrecognized option '--nope'"},
		{"--nope=x", "", "", "unrecognized option '--nope'"},
		{"-qz", "quiet=", "", "invalid option -- 'z'"},
		{"-D", "", "", "option requires an argument -- 'D'"},
		{"--directory", "", "", "option '--directory' requires an argument"},
		{"--quiet=x", "", "", "option '--quiet' doesn't allow an argument"},
		{"--discard=bad", "", "", "option --discard: refused"},
		{"-Dbad", "", "", "option --directory: refused"},
		{"--=x", "", "", "unrecognized option '--'"},
	} {
		var got []string
		rest, err := testTable(&got).Parse(strings.Fields(c.args))
		if e := fmt.Sprint(err); err != nil && e != c.err || err == nil && c.err != "" {
			t.Errorf("%q: error %v, want %q", c.args, err, c.err)
		}
		if s := strings.Join(got, " "); s != c.set {
			t.Errorf("%q: set %q, want %q", c.args, s, c.set)
		}
		if r := strings.Join(rest, " "); r != c.rest {
			t.Errorf("%q: rest %q, want %q", c.args, r, c.rest)
		}
	}
}

// TestParseHostile: names that a terminal would obey are escaped.
func TestParseHostile(t *testing.T) {
	var got []string
	_, err := testTable(&got).Parse([]string{"--\x1b[31m\xff" + strings.Repeat("x", 1000)})
	if err == nil || strings.ContainsRune(err.Error(), 0x1b) || len(err.Error()) > 300 {
		t.Errorf("%q", err)
	}
	many := make([]string, 10000)
	for i := range many {
		many[i] = "-q"
	}
	if _, err := testTable(&got).Parse(many); err != nil || len(got) != 10000 {
		t.Errorf("%v, %d", err, len(got))
	}
}

func TestHelp(t *testing.T) {
	var got []string
	var b strings.Builder
	testTable(&got).WriteHelp(&b, Style{}, 80)
	for _, want := range []string{"\nOne:\n", "  -q --quiet                   Be quiet\n", "     --discard=BOOL            Discard\n", "  -g --gdb[=ADDRESS]"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in %s", want, b.String())
		}
	}
	if w := wrap("aa bb cc", 5); !reflect.DeepEqual(w, []string{"aa bb", "cc"}) {
		t.Errorf("%q", w)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("-nqD/x\x00--cpus\x003")
	f.Fuzz(func(t *testing.T, s string) {
		var got []string
		testTable(&got).Parse(strings.Split(s, "\x00"))
	})
}
