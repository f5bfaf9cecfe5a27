package bootentry

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// peFile builds a PE binary of NAME, CONTENT pairs, as objcopy makes UKIs.
func peFile(pairs ...string) []byte {
	const align = 512
	le := binary.LittleEndian
	n := len(pairs) / 2
	b := make([]byte, 0x80+4+20+40*n)
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], 0x80)
	copy(b[0x80:], "PE\x00\x00")
	le.PutUint16(b[0x84:], 0x8664)
	le.PutUint16(b[0x86:], uint16(n))
	for i := range n {
		for len(b)%align != 0 {
			b = append(b, 0)
		}
		h := b[0x98+40*i:]
		copy(h, pairs[2*i])
		le.PutUint32(h[8:], uint32(len(pairs[2*i+1])))
		le.PutUint32(h[16:], uint32((len(pairs[2*i+1])+align-1)/align*align))
		le.PutUint32(h[20:], uint32(len(b)))
		b = append(b, pairs[2*i+1]...)
	}
	for len(b)%align != 0 {
		b = append(b, 0)
	}
	return b
}

// tree makes a directory of NAME, CONTENT pairs; "-> x" is a symbolic link.
func tree(t *testing.T, pairs ...string) *Tree {
	t.Helper()
	dir := t.TempDir()
	for i := 0; i < len(pairs); i += 2 {
		p := filepath.Join(dir, pairs[i])
		err := os.MkdirAll(filepath.Dir(p), 0o755)
		if link, ok := strings.CutPrefix(pairs[i+1], "-> "); err == nil && ok {
			err = os.Symlink(link, p)
		} else if err == nil {
			err = os.WriteFile(p, []byte(pairs[i+1]), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	tr, err := OpenTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Close() })
	return tr
}

func content(t *testing.T, f *os.File) string {
	t.Helper()
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// describe is a kernel as one string.
func describe(t *testing.T, k *Kernel) string {
	t.Helper()
	s := content(t, k.Kernel)
	for _, f := range k.Initrds {
		s += "+" + content(t, f)
	}
	return s + " " + k.Options
}

func TestFromTree(t *testing.T) {
	entry := func(version string) string {
		return "# comment\ntitle\tX\nsort-key x\nversion " + version + "\nlinux /k" + version + "\ninitrd /i1\ninitrd /i2\noptions a=1\noptions b=2\n"
	}
	uki := string(peFile(".osrel", "ID=x\nVERSION_ID=\"9\"\n", ".cmdline", "quiet\nsplash\x00", ".linux", "KERNEL", ".initrd", "INITRD", ".ucode", "UCODE"))
	addon := string(peFile(".cmdline", "more"))
	for name, c := range map[string]struct {
		files []string
		want  string
	}{
		"type 1, newest": {[]string{"boot/loader/entries/a.conf", entry("1.9"), "boot/loader/entries/b.conf", entry("1.10"), "boot/k1.9", "K9", "boot/k1.10", "K10", "boot/i1", "I1", "boot/i2", "I2"}, "K10+I1+I2 a=1 b=2"},
		"default pattern": {[]string{"efi/loader/loader.conf", "timeout 3\ndefault a*\n", "boot/loader/entries/a.conf", entry("1.9"), "boot/loader/entries/b.conf", entry("1.10"),
			"boot/k1.9", "K9", "boot/k1.10", "K10", "boot/i1", "I1", "boot/i2", "I2"}, "K9+I1+I2 a=1 b=2"},
		"boot counter": {[]string{"boot/loader/entries/b+0-3.conf", entry("1.10"), "boot/loader/entries/a+2-1.conf", entry("1.9"),
			"boot/k1.9", "K9", "boot/k1.10", "K10", "boot/i1", "I1", "boot/i2", "I2"}, "K9+I1+I2 a=1 b=2"},
		"other architecture":  {[]string{"boot/loader/entries/b.conf", entry("1.10") + "architecture aa64\n", "boot/loader/entries/a.conf", "linux k\n", "boot/k1.10", "K10", "boot/k", "K"}, "K "},
		"type 2":              {[]string{"efi/EFI/Linux/x.efi", uki, "efi/EFI/Linux/x.efi.extra.d/y.addon.efi", addon}, "KERNEL+UCODE+INITRD quiet splash more"},
		"type 2, not a UKI":   {[]string{"efi/EFI/Linux/x.efi", "MZ", "boot/vmlinuz-2", "K2"}, "K2 "},
		"efi entry, no UKI":   {[]string{"boot/loader/entries/a.conf", "efi /shell.efi\n", "boot/shell.efi", "MZ"}, "boot entry a: not a unified kernel image"},
		"Debian":              {[]string{"boot/vmlinuz-6.1.0-9-amd64", "K9", "boot/vmlinuz-6.1.0-10-amd64", "K10", "boot/initrd.img-6.1.0-10-amd64", "I", "boot/vmlinuz-7.old", "K7"}, "K10 "},
		"Fedora":              {[]string{"usr/lib/modules/6.9/vmlinuz", "K9", "usr/lib/modules/6.10/modules.dep", "", "boot/vmlinuz-6.8", "K8"}, "K9 "},
		"link":                {[]string{"vmlinuz", "-> /boot/kernel", "boot/kernel", "K"}, "K "},
		"link out of it":      {[]string{"vmlinuz", "-> ../../../../../../../../../../etc/passwd"}, "no kernel was found"},
		"absolute link out":   {[]string{"boot/loader/entries/a.conf", "linux /k\n", "boot/k", "-> /etc/passwd"}, "no kernel was found"},
		"path out of it":      {[]string{"boot/loader/entries/a.conf", "linux ../../../../../../../../etc/passwd\n"}, "no kernel was found"},
		"magic link":          {[]string{"vmlinuz", "-> /proc/self/exe"}, "no kernel was found"},
		"missing initrd":      {[]string{"boot/loader/entries/a.conf", entry("1"), "boot/k1", "K"}, "boot entry a: open i1: no such file or directory"},
		"nothing":             {nil, "no kernel was found"},
		"entries are a file":  {[]string{"boot/loader/entries", "x"}, "no kernel was found"},
		"case of names (FAT)": {[]string{"boot/loader/entries/A.CONF", "linux k\n", "boot/k", "K"}, "K "},
	} {
		k, err := FromTree(tree(t, c.files...), How{})
		got := ""
		if err != nil {
			got = err.Error()
		} else {
			got = describe(t, k)
			k.Close()
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestDistributionInitrd(t *testing.T) {
	k, err := FromTree(tree(t, "boot/vmlinuz-6", "K", "boot/initrd.img-6", "I"), How{Initrd: true})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if got := describe(t, k); got != "K+I " {
		t.Errorf("%q", got)
	}
}

func TestProfiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.efi")
	data := peFile(".linux", "K", ".cmdline", "base", ".initrd", "I", ".profile", "ID=one", ".profile", "ID=two", ".cmdline", "second")
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	for profile, want := range []string{"K+I base", "K+I second"} {
		k, err := OpenUKI(path, profile)
		if err != nil {
			t.Fatal(err)
		}
		if got := describe(t, k); got != want {
			t.Errorf("profile %d: %q", profile, got)
		}
		k.Close()
	}
	if _, err := OpenUKI(path, 2); err == nil {
		t.Error("profile 2 accepted")
	}
	if err := os.WriteFile(path, []byte("MZ an EFI stub kernel"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenUKI(path, 0); !errors.Is(err, ErrNotUKI) {
		t.Error(err)
	}
}

// TestDevices: what is no regular file is not opened, and a FIFO not waited for.
func TestDevices(t *testing.T) {
	tr := tree(t, "x", "-> /dev/null")
	root := tr.dir.Name()
	for _, name := range []string{"x", "missing", "../x", "/x"} {
		if f, err := tr.Open(name); err == nil {
			f.Close()
			t.Errorf("%s opened in %s", name, root)
		}
	}
}

// FuzzUKI: a kernel image is somebody else's file.
func FuzzUKI(f *testing.F) {
	f.Add(peFile(".linux", "K", ".cmdline", "a", ".profile", "x", ".osrel", "ID=x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		u, err := ParseUKI(bytes.NewReader(b), int64(len(b)), true)
		if err != nil {
			return
		}
		for p := range min(u.Profiles(), 3) {
			u.CommandLine(p)
		}
		u.release("ID")
	})
}

func FuzzEntry(f *testing.F) {
	f.Add("title x\nlinux /k\ninitrd ../i\narchitecture x64\nprofile 1", "x+3-1")
	f.Fuzz(func(t *testing.T, text, name string) {
		var e Entry
		e.setID(name)
		for line := range strings.Lines(text) {
			k, v, _ := strings.Cut(strings.TrimSpace(line), " ")
			e.parse([][2]string{{k, v}})
		}
		if strings.HasPrefix(e.Kernel, "/") || e.Kernel == ".." || strings.HasPrefix(e.Kernel, "../") {
			t.Errorf("%q", e.Kernel)
		}
	})
}
