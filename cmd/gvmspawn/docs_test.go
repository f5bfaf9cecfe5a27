package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/getopt"
	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// TestManual: man/gvmspawn.1 is what the table makes; "make man" renews it.
func TestManual(t *testing.T) {
	var b bytes.Buffer
	writeMan(&b)
	have, err := os.ReadFile("../../man/gvmspawn.1")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, b.Bytes()) {
		t.Error("man/gvmspawn.1 is out of date, run: go run ./cmd/gvmspawn man >man/gvmspawn.1")
	}
	for _, line := range strings.Split(b.String(), "\n") {
		if strings.HasPrefix(line, "'") {
			t.Errorf("line is a roff command: %q", line)
		}
	}
	if groff, err := exec.LookPath("groff"); err == nil {
		c := exec.Command(groff, "-man", "-Tutf8", "-ww", "-z")
		c.Stdin = &b
		if out, err := c.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%v %s", err, out)
		}
	}
}

// TestTable: every option is explained, names are unique, and the manual's
// paragraphs belong to options.
func TestTable(t *testing.T) {
	names := map[string]bool{}
	for _, g := range newSettings().table() {
		for _, o := range g.Options {
			keys := append([]string{o.Long}, o.Aliases...)
			if o.Short != 0 {
				keys = append(keys, string(rune(o.Short)))
			}
			for _, k := range keys {
				if names[k] {
					t.Errorf("%s is there twice", k)
				}
				names[k] = true
			}
			if !o.Hidden && (o.Help == "" || strings.HasSuffix(o.Help, ".")) || o.Set == nil {
				t.Errorf("--%s is not explained", o.Long)
			}
		}
	}
	for k := range docs {
		if !names[k] {
			t.Errorf("a paragraph about --%s, which does not exist", k)
		}
	}
	// Every option of systemd-vmspawn 257 to 262 (vmspawn.md §1.1, §1.2).
	for k := range strings.FieldsSeq(`q quiet D directory i image cpus qemu-smp ram qemu-mem kvm qemu-kvm vsock qemu-vsock vsock-cid tpm linux initrd n network-tap
		network-user-mode firmware discard-disk secure-boot M machine uuid register private-users bind bind-ro extra-drive forward-journal pass-ssh-key ssh-key-type
		console background load-credential set-credential no-pager h help version keep-unit qemu-gui tpm-state G grow-image s smbios11 notify-ready S slice property
		no-ask-password bind-user bind-user-shell bind-user-group system user image-format x ephemeral image-disk-type efi-nvram-template efi-nvram-state
		firmware-features forward-journal-max-use forward-journal-keep-free forward-journal-max-file-size forward-journal-max-files console-transport bind-volume coco
		confidential-computing`) {
		if !names[k] {
			t.Errorf("there is no option %s", k)
		}
	}
}

// TestCompletion: the scripts are valid, and bash's completes.
func TestCompletion(t *testing.T) {
	dir := t.TempDir()
	for _, shell := range []string{"bash", "zsh", "fish"} {
		r := execute(t, dir, "completion", shell)
		if r.status != 0 || !strings.Contains(r.stdout, "directory") || !strings.Contains(r.stdout, "interactive") {
			t.Errorf("%s: %d %s", shell, r.status, r.stderr)
		}
		path, err := exec.LookPath(shell)
		if err != nil {
			continue
		}
		script := filepath.Join(dir, shell)
		if err := os.WriteFile(script, []byte(r.stdout), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(path, "-n", script).CombinedOutput(); err != nil {
			t.Errorf("%s: %v %s", shell, err, out)
		}
		if shell == "bash" {
			testBash(t, path, script)
		}
	}
	if r := execute(t, dir, "completion", "csh"); r.status != 1 {
		t.Errorf("%+v", r)
	}
}

func testBash(t *testing.T, bash, script string) {
	for words, want := range map[string]string{
		"gvmspawn --dir": "--directory", "gvmspawn --console h": "headless", "gvmspawn --console = n": "native", "gvmspawn l": "list list-disks", "gvmspawn --uuid x": "",
	} {
		n := len(strings.Fields(words)) - 1
		out, err := exec.Command(bash, "-c", `source "$1"; COMP_WORDS=($2); COMP_CWORD=$3; _gvmspawn 2>/dev/null; echo "${COMPREPLY[*]}"`, "x", script, words, string(rune('0'+n))).CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != want {
			t.Errorf("%s: %q %v", words, got, err)
		}
	}
}

// TestHelpWidth: help fits 80 columns.
func TestHelpWidth(t *testing.T) {
	r := execute(t, t.TempDir(), "--help", "--no-pager")
	for _, line := range strings.Split(r.stdout, "\n") {
		if len([]rune(line)) > 80 && !regexp.MustCompile(`^  \w`).MatchString(line) {
			t.Errorf("%q", line)
		}
	}
}

// tableRow is an option's row of the table in README.md.
type tableRow struct{ in257, in262, ours string }

// optionsTable reads the table in README.md. A cell may have "(`--x=` ✓)" for one of
// several options of a row.
func optionsTable(t *testing.T) map[string]tableRow {
	t.Helper()
	b, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]tableRow{}
	for _, m := range regexp.MustCompile("(?m)^\\| (`--[^|]*)\\|([^|]*)\\|([^|]*)\\|([^|]*)\\|$").FindAllStringSubmatch(string(b), -1) {
		for _, o := range regexp.MustCompile("`--([a-z0-9-]+)=?`").FindAllStringSubmatch(m[1], -1) {
			cell := func(i int) string {
				if own := regexp.MustCompile("\\(`--" + o[1] + "=?` ([^)]*)\\)").FindStringSubmatch(m[i]); own != nil {
					return own[1]
				}
				return strings.TrimSpace(regexp.MustCompile(`\([^)]*\)`).ReplaceAllString(m[i], ""))
			}
			rows[o[1]] = tableRow{cell(2), cell(3), cell(4)}
		}
	}
	return rows
}

// TestOptionsTable: the table in README.md has every option, and only those; what it says
// is ours alone, refused and accepted is so.
func TestOptionsTable(t *testing.T) {
	rows := optionsTable(t)
	refused := func(o *getopt.Option, value string) bool {
		err := o.Set(value)
		return err != nil && strings.Contains(err.Error(), "not supported")
	}
	table := newSettings().table()
	for g := range table {
		for i := range table[g].Options {
			o := &table[g].Options[i]
			row, listed := rows[o.Long]
			delete(rows, o.Long)
			if o.Hidden {
				continue
			}
			if !listed || row.ours == "" {
				t.Errorf("--%s is missing", o.Long)
				continue
			}
			if ours := row.in257 == "–" && row.in262 == "–"; ours != o.Own {
				t.Errorf("--%s is ours alone: %t in README.md, %t in the table", o.Long, ours, o.Own)
			}
			if row.ours == "✗" && !refused(o, "x") && !refused(o, o.Values[len(o.Values)-1]) {
				t.Errorf("--%s is not refused", o.Long)
			}
			for _, v := range o.Values {
				if marked := row.ours == "✗" || strings.Contains(row.ours, v+" ✗"); refused(o, v) && !marked {
					t.Errorf("--%s=%s is refused, which README.md does not say", o.Long, v)
				}
			}
			for _, m := range regexp.MustCompile(`(\w+) ✗`).FindAllStringSubmatch(row.ours, -1) {
				if !refused(o, m[1]) {
					t.Errorf("--%s=%s is not refused", o.Long, m[1])
				}
			}
		}
	}
	for o := range rows {
		t.Errorf("--%s does not exist", o)
	}
}

// TestLongOptionsOf262: the column of systemd-vmspawn 262 against the program.
func TestLongOptionsOf262(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" || os.Geteuid() != 0 {
		t.Skip("needs root and a tree with systemd-vmspawn: set GVMSPAWN_LONG=1")
	}
	c := exec.Command("systemd-vmspawn", "--help", "--no-pager")
	c.SysProcAttr = &syscall.SysProcAttr{Chroot: guesttest.Asset(t, "host-vmspawn")}
	c.Path = "/usr/bin/systemd-vmspawn"
	c.Err = nil // it is looked up in the tree
	help, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v %s", err, help)
	}
	theirs := map[string]bool{}
	for _, o := range regexp.MustCompile(`--([a-z0-9-]+)`).FindAllStringSubmatch(string(help), -1) {
		theirs[o[1]] = true
	}
	for name, row := range optionsTable(t) {
		if has := row.in262 != "–"; has != theirs[name] {
			t.Errorf("--%s: %t in README.md, %t in systemd-vmspawn", name, has, theirs[name])
		}
		delete(theirs, name)
	}
	for name := range theirs {
		t.Errorf("--%s is not in README.md", name)
	}
}
