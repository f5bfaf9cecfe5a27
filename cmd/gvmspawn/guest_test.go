package main

import (
	"bytes"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// debian is a Debian tree that boots under systemd, with what its machine says.
type debian struct {
	t             *testing.T
	dir, kernel   string
	notifications *net.UnixConn
	socket        string
}

// newDebian copies the tree, so that the guest may write to it.
func newDebian(t *testing.T) *debian { return newDebianTree(t, "tree-trixie") }

func newDebianTree(t *testing.T, name string) *debian {
	t.Helper()
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("boots a Debian tree, on the software CPU if there is no KVM: set GVMSPAWN_LONG=1")
	}
	tree, kernel := guesttest.Asset(t, name), guesttest.KernelAsset(t, "kernel-trixie")
	d := &debian{t: t, dir: t.TempDir(), kernel: kernel.Path}
	if err := guesttest.CopyTree(tree, filepath.Join(d.dir, "tree")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d.dir, "tree/etc/machine-id"), nil, 0o444); err != nil {
		t.Fatal(err)
	}
	d.socket = filepath.Join(d.dir, "notify")
	var err error
	if d.notifications, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: d.socket, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.notifications.Close() })
	return d
}

// boot starts the machine and waits for the guest's READY=1. It returns the
// notifications until then.
func (d *debian) boot(args ...string) (*live, string) {
	d.t.Helper()
	l := &live{t: d.t, dir: d.dir, Cmd: spawnCommand(d.dir, append([]string{"-q", "-D", "tree", "--linux", d.kernel, "--ram=1G", "--console=read-only", "--tpm=no", "-M", "debian"}, args...)...)}
	l.Env = append(l.Env, "NOTIFY_SOCKET="+d.socket, "GVMSPAWN_TPM="+os.Getenv("GVMSPAWN_TPM"))
	l.Stdout, l.Stderr = &l.out, &l.errs
	l.start()
	return l, d.until("READY=1")
}

// until reads notifications until one has the text.
func (d *debian) until(text string) string {
	d.t.Helper()
	all, b := "", make([]byte, 8192)
	d.notifications.SetReadDeadline(time.Now().Add(8 * time.Minute)) //nolint:errcheck // then Read fails at once
	for !strings.Contains(all, text) {
		n, err := d.notifications.Read(b)
		if err != nil {
			d.t.Fatalf("no %s: %v, %q", text, err, all)
		}
		all += string(b[:n]) + "\n"
	}
	return all
}

// in runs a command in the guest by "gvmspawn ssh".
func (d *debian) in(command string) string {
	d.t.Helper()
	c := spawnCommand(d.dir, "ssh", "debian", command)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		d.t.Errorf("%s: %v %s", command, err, errs.String())
	}
	return out.String()
}

// TestLongGuest boots a Debian tree with systemd and looks from the inside at
// what the command line promised: acceptance 4 to 7, 10 and 11 of vmspawn.md.
func TestLongGuest(t *testing.T) {
	d := newDebian(t)
	shared, file := filepath.Join(d.dir, "a shared:dir"), filepath.Join(d.dir, "file")
	if err := os.Mkdir(shared, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("of the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	big := strings.Repeat("0123456789abcdef", 6400)
	if err := os.WriteFile(filepath.Join(d.dir, "big"), []byte(big), 0o644); err != nil {
		t.Fatal(err)
	}
	l, before := d.boot("--bind="+strings.ReplaceAll(shared, ":", `\:`)+":/mnt/with space", "--bind-ro="+file+":/etc/from-host", "--uuid=0123456789abcdef0123456789abcdef",
		"-s", "a string", `--set-credential=test.binary:a\x00b`, "--load-credential=test.big:"+filepath.Join(d.dir, "big"), "--forward-journal="+filepath.Join(d.dir, "guest.journal"))
	if started, _, _ := strings.Cut(before, "READY=1"); !strings.Contains(started, "STATUS=VM started.") || strings.Contains(started, "READY") {
		t.Errorf("ready before the guest: %q", before)
	}
	for _, c := range []struct{ command, want string }{
		{"systemctl is-system-running --wait", "running\n"},
		{"cat /sys/class/dmi/id/product_uuid", "01234567-89ab-cdef-0123-456789abcdef\n"},
		{"cat /etc/machine-id", "0123456789abcdef0123456789abcdef\n"},
		{"tr '\\0' '\\n' </sys/firmware/dmi/entries/11-0/raw | grep -ac 'a string$'", "1\n"},
		{"od -An -c /run/credentials/@system/test.binary | tr -d ' '", "a\\0b\n"},
		{"md5sum </run/credentials/@system/test.big; printf 0123456789abcdef%.0s $(seq 6400) | md5sum", ""},
		{"cat /etc/from-host; (echo x >/etc/from-host) 2>/dev/null && echo written", "of the host"},
		{"mount -o remount,rw /etc/from-host 2>/dev/null; (echo x >/etc/from-host) 2>/dev/null; cat /etc/from-host", "of the host"},
		{"touch '/mnt/with space/from guest' && findmnt -no FSTYPE '/mnt/with space'", "virtiofs\n"},
	} {
		got := d.in(c.command + "; true")
		if c.want == "" {
			if a, b, _ := strings.Cut(strings.TrimSpace(got), "\n"); a != b {
				t.Errorf("%s: %q", c.command, got)
			}
		} else if got != c.want {
			t.Errorf("%s: %q, want %q", c.command, got, c.want)
		}
	}
	if _, err := os.Stat(filepath.Join(shared, "from guest")); err != nil {
		t.Error(err)
	}
	// The connection may end before the answer has come.
	if err := spawnCommand(d.dir, "ssh", "debian", "systemctl exit 42").Run(); err != nil {
		t.Logf("systemctl exit: %v", err)
	}
	d.until("EXIT_STATUS=42")
	if st := l.status(); st != 42 {
		t.Errorf("status %d, %s", st, l.errs.String())
	}
	journal, err := filepath.Glob(filepath.Join(d.dir, "guest.*"))
	if err != nil || len(journal) != 1 {
		t.Errorf("%v %v", journal, err)
	} else if b, err := os.ReadFile(journal[0]); err != nil || !bytes.Contains(b, []byte("Reached target")) {
		t.Errorf("%s: %d bytes, %v", journal[0], len(b), err)
	}
	if left, _ := os.ReadDir(filepath.Join(d.dir, "run")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// TestLongPowerButton: SIGTERM is the power button, which systemd-logind hears
// (acceptance 8).
func TestLongPowerButton(t *testing.T) {
	d := newDebian(t)
	l, _ := d.boot("--stop-timeout=300", "--pass-ssh-key=no")
	l.Process.Signal(unix.SIGTERM)
	timer := time.AfterFunc(5*time.Minute, func() { l.Process.Kill() })
	defer timer.Stop()
	l.Wait()
	if st := l.ProcessState.ExitCode(); st != 0 || l.errs.String() != "" || !strings.Contains(l.out.String(), "Power") {
		t.Errorf("%d %q %q", st, l.errs.String(), l.out.String()[max(0, len(l.out.String())-2000):])
	}
}

// TestLongShiftedTree boots trees whose files belong to a container's range of
// users and to the range that systemd keeps for trees of others (foreign UIDs):
// the guest sees root's files, and what it writes has the range's owners.
func TestLongShiftedTree(t *testing.T) {
	for name, shift := range map[string]int{"container": 1 << 20, "foreign": 2147352576} {
		t.Run(name, func(t *testing.T) {
			if os.Geteuid() != 0 {
				t.Skip("needs root, to give files away")
			}
			d := newDebian(t)
			shiftTree(t, filepath.Join(d.dir, "tree"), shift)
			l, _ := d.boot()
			for command, want := range map[string]string{
				"systemctl is-system-running --wait":                                                                   "running\n",
				"stat -c %u:%g:%a /usr/bin/passwd /etc/shadow":                                                         "0:0:4755\n0:42:640\n",
				"find / -xdev -uid +2000 ! -path '/proc/*' | head -n 3":                                                "",
				"touch /root/made && chown 33:42 /root/made && echo done":                                              "done\n",
				"useradd -m somebody && runuser -u somebody touch /home/somebody/own && stat -c %U /home/somebody/own": "somebody\n",
			} {
				if got := d.in(command); got != want {
					t.Errorf("%s: %q, want %q", command, got, want)
				}
			}
			_ = spawnCommand(d.dir, "ssh", "debian", "systemctl exit 42").Run() // the connection may end before the answer
			if st := l.status(); st != 42 {
				t.Errorf("status %d, %s", st, l.errs.String())
			}
			for path, want := range map[string][2]int{"root/made": {shift + 33, shift + 42}, "home/somebody/own": {shift + 1000, shift + 1000}, "etc/machine-id": {shift, shift}} {
				var st unix.Stat_t
				if err := unix.Lstat(filepath.Join(d.dir, "tree", path), &st); err != nil || int(st.Uid) != want[0] || int(st.Gid) != want[1] {
					t.Errorf("%s: %d:%d %v, want %v", path, st.Uid, st.Gid, err, want)
				}
			}
		})
	}
}

// shiftTree gives every file of a tree to the users of a range.
func shiftTree(t *testing.T, tree string, shift int) {
	t.Helper()
	linked := map[uint64]bool{} // files with several names
	err := filepath.WalkDir(tree, func(path string, entry fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		if linked[st.Ino] {
			return err
		}
		linked[st.Ino] = st.Nlink > 1 && !entry.IsDir()
		if err == nil {
			err = unix.Lchown(path, int(st.Uid)+shift, int(st.Gid)+shift)
		}
		if err == nil && entry.Type()&fs.ModeSymlink == 0 {
			err = unix.Chmod(path, st.Mode&0o7777) // chown cleared the set-user-ID bits
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
