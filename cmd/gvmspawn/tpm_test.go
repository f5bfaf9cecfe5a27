package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestTPMState: where the state is, that nothing of a transient one is left, and
// that only --tpm=yes insists.
func TestTPMState(t *testing.T) {
	needSwtpm(t)
	for _, c := range []struct {
		name   string
		args   []string
		status int
		kept   string // directory of the state
		want   string // on the standard error
	}{
		{"auto", []string{"--tpm=auto"}, 0, "tree.tpmstate", ""},
		{"path", []string{"--tpm=yes", "--tpm-state=./deep/state, here"}, 0, "deep/state, here", ""},
		{"off", []string{"--tpm=yes", "--tpm-state=off"}, 0, "", ""},
		{"impossible", []string{"--tpm=yes", "--tpm-state=/proc/state"}, 1, "", "gvmspawn: cannot make the TPM's state directory: mkdir /proc/state: "},
		{"impossible but not wanted", []string{"--tpm=auto", "--tpm-state=/proc/state"}, 0, "", ""},
		{"no such interface", []string{"--tpm=yes"}, 1, "", "gvmspawn: $GVMSPAWN_TPM is isa, but can only be tis or crb"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // making a TPM is another process's work
			l := tinyCommand(t, t.TempDir(), append([]string{"-q"}, c.args...)...)
			if c.name == "no such interface" {
				l.Env = append(l.Env, "GVMSPAWN_TPM=isa")
			}
			var err error
			if l.stdin, err = l.StdinPipe(); err != nil {
				t.Fatal(err)
			}
			l.start()
			if c.status == 0 {
				l.out.waitFor(t, "tiny guest")
				l.say("q")
			}
			if s := l.status(); s != c.status || !strings.HasPrefix(l.errs.String(), c.want) || c.want == "" && l.errs.String() != "" {
				t.Errorf("status %d, %q", s, l.errs.String())
			}
			found, err := filepath.Glob(filepath.Join(l.dir, "*", "*", "tpm2-00.permall"))
			more, _ := filepath.Glob(filepath.Join(l.dir, "*", "tpm2-00.permall"))
			want := 0
			if c.kept != "" {
				want = 1
				if _, err := os.Stat(filepath.Join(l.dir, c.kept, "tpm2-00.permall")); err != nil {
					t.Error(err)
				}
			}
			if found = append(found, more...); err != nil || len(found) != want {
				t.Errorf("states: %v", found)
			}
		})
	}
}

// TestTPMChildEnds: swtpm does not survive a machine that is killed.
func TestTPMChildEnds(t *testing.T) {
	needSwtpm(t)
	l := startTiny(t, t.TempDir(), "-q", "--tpm=yes", "--tpm-state=off")
	kids := children(t, l.Process.Pid)
	l.Process.Kill() //nolint:errcheck // seen below
	l.Wait()         //nolint:errcheck // it was killed
	found := false
	for _, kid := range kids {
		if !strings.Contains(kid, " (swtpm) ") {
			continue
		}
		found = true
		pid, _, _ := strings.Cut(kid, " ")
		for end := time.Now().Add(10 * time.Second); running(pid); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("it is left: %s", kid)
			}
		}
	}
	if !found {
		t.Errorf("no swtpm among %q", kids)
	}
}

// running is whether a process is there and no zombie.
func running(pid string) bool {
	b, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
	_, state, _ := strings.Cut(string(b), ") ")
	return err == nil && !strings.HasPrefix(state, "Z")
}
