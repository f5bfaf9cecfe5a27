package initrd

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"
	"golang.org/x/sys/unix"
)

var testCreds = []Credential{{"fruit", []byte("apple")}, {"empty", nil}}

// TestHandoverProgram: the calls by which systemd finds its credentials.
func TestHandoverProgram(t *testing.T) {
	want := `
		mkdir("/run", 0755) = -17
		mount("tmpfs", "/run", "tmpfs", 0x1000006, "mode=0755,size=20%,nr_inodes=800k") = 0
		mkdir("/run/credentials", 0755) = 0
		mkdir("/run/credentials/@system", 0755) = 0
		mount("ramfs", "/run/credentials/@system", "ramfs", 0xe, "mode=0700") = 0
		open("/run/credentials/@system/fruit", 0x800c1) = 7
		open("/.gvmspawn/credentials/fruit", 0x80000) = 7
		sendfile(7, 7, 0, 5) = 5
		close(7) = 0
		close(7) = 0
		open("/run/credentials/@system/empty", 0x800c1) = 7
		open("/.gvmspawn/credentials/empty", 0x80000) = 7
		close(7) = 0
		close(7) = 0
		execve("/init", argv[0]="/init", argv+8, envp+24) = 0`
	results := map[string]int64{`mkdir("/run",`: -int64(unix.EEXIST), "sendfile": 5}
	traceEqual(t, run(t, handoverProgram(testCreds, "/init"), outcome(results)), want)

	for call, v := range map[string]int64{"mount": -int64(unix.ENOMEM), "mkdir(\"/run/credentials\"": -int64(unix.EROFS), "sendfile": 4} {
		got := run(t, handoverProgram(testCreds, "/init"), outcome(map[string]int64{"sendfile": 5, call: v}))
		if n := len(got); got[n-1] != "exit(1)" || !strings.HasPrefix(got[n-2], `report(2, "<2>gvmspawn: cannot hand over the credentials: errno "`) {
			t.Errorf("%s = %d: %q", call, v, got[n-2:])
		}
	}

	// The synthesised initrd does so in the new root, and drops its own copy.
	got := run(t, firstProgram(nil, Root{Source: "root", Types: []string{"virtiofs"}}, testCreds, fallbackInits, false), outcome(map[string]int64{"sendfile": 5}))
	traceEqual(t, got, `
		...
		mount("root", "/root", "virtiofs", 0x0, "") = 0
		mkdir("/root/run", 0755) = 0
		...
		open("/root/run/credentials/@system/empty", 0x800c1) = 7
		open("/.gvmspawn/credentials/empty", 0x80000) = 7
		close(7) = 0
		close(7) = 0
		unlink("/.gvmspawn/credentials/fruit") = 0
		unlink("/.gvmspawn/credentials/empty") = 0
		mount("/dev", "/root/dev", NULL, 0x2000, NULL) = 0
		...
		execve("/sbin/init", argv[0]="/sbin/init", argv+8, envp+24) = 0`)
}

// TestProgramSetenv: entries are added behind those that are there.
func TestProgramSetenv(t *testing.T) {
	p := NewProgram()
	p.Setenv("THREE=3")
	p.Setenv("FOUR=four")
	p.Exec("/bin/sh")
	if out, code := execProgram(t, p, "-c", `echo "$ONE|$TWO|$THREE|$FOUR|$1"`, "a", "b"); out != "1|2|3|four|b\n" || code != 0 {
		t.Errorf("%q, %d", out, code)
	}
}

// TestHandover: the archive holds the credentials, the program, and scripts
// that a shell can run.
func TestHandover(t *testing.T) {
	big := Credential{"big", bytes.Repeat([]byte("0123456789abcdef"), 1<<16)}
	img, err := Handover([]Credential{testCreds[0], big}, "quiet rdinit=/other")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	files := map[string][]byte{}
	r := cpio.Newc.Reader(img.Reader)
	for {
		rec, err := r.ReadRecord()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, rec.Name)
		if rec.Mode&unix.S_IFMT == unix.S_IFDIR {
			err = os.MkdirAll(to, 0o755)
		} else {
			files[rec.Name], err = io.ReadAll(io.NewSectionReader(rec, 0, int64(rec.FileSize)))
			if err == nil {
				err = os.WriteFile(to, files[rec.Name], 0o755)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(files[".gvmspawn/credentials/big"], big.Data) || !bytes.Contains(files[".gvmspawn/init"], []byte("/other\x00")) {
		t.Error("the archive lacks a credential or the user's rdinit=")
	}
	// The paths of the scripts, below dir.
	if err := os.WriteFile(filepath.Join(dir, "scripts/local"), []byte("echo local\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	sh := "set -e\n"
	for _, name := range []string{"conf/conf.d/gvmspawn", "scripts/gvmspawn"} {
		s := string(files[name])
		for _, prefix := range []string{"/.gvmspawn", "/run", "/scripts"} {
			s = strings.ReplaceAll(s, prefix, dir+prefix)
		}
		sh += s
	}
	out, err := exec.Command("sh", "-c", "mount() { :; }\n"+sh+"echo $BOOT; cat "+dir+"/run/credentials/@system/fruit; stat -c ' %a' "+dir+"/run/credentials/@system/big").CombinedOutput()
	if err != nil || string(out) != "local\ngvmspawn\napple 400\n" {
		t.Errorf("%q %v", out, err)
	}
}
