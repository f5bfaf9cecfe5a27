package firmware

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// newDescriptor is the text of a descriptor like Debian's.
func newDescriptor(features string) string {
	return fmt.Sprintf(`{"description": "x", "interface-types": ["uefi"],
		"mapping": {"device": "flash", "executable": {"filename": "/code", "format": "raw"}, "nvram-template": {"filename": "/vars", "format": "raw"}},
		"targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}], "features": [%s], "tags": []}`, features)
}

// newDirectory makes a directory with files of the texts.
func newDirectory(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestList: earlier directories override and mask by file name (vmspawn.md §2.15).
func TestList(t *testing.T) {
	first := newDirectory(t, map[string]string{"50-b.json": "{}", "60-masked.json": "", "note.txt": "x"})
	if err := os.Symlink("/dev/null", filepath.Join(first, "70-null.json")); err != nil {
		t.Fatal(err)
	}
	second := newDirectory(t, map[string]string{"40-a.json": "{}", "50-b.json": "{}", "60-masked.json": "{}", "70-null.json": "{}"})
	got := strings.Join(List([]string{first, "/nonexistent", second}), " ")
	if want := second + "/40-a.json " + first + "/50-b.json"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestFind: the first that fits wins; what does not fit is passed over.
func TestFind(t *testing.T) {
	plain := newDescriptor("")
	replace := func(old, new string) string { return strings.Replace(plain, old, new, 1) }
	debian := map[string]string{
		"40-enrolled.json": newDescriptor(`"enrolled-keys", "requires-smm", "secure-boot"`),
		"50-secure.json":   newDescriptor(`"requires-smm", "secure-boot"`),
		"60-plain.json":    plain,
	}
	for _, c := range []struct {
		name, features, secureBoot string
		files                      map[string]string
		want                       string // a file, or what the error contains
	}{
		{"default", "", "", debian, "60-plain.json"},
		{"secure boot", "", "yes", debian, "50-secure.json"},
		{"no secure boot", "", "no", debian, "60-plain.json"},
		{"enrolled keys", "enrolled-keys", "", debian, "40-enrolled.json"},
		{"requiring wins", "secure-boot,~secure-boot", "", debian, "50-secure.json"},
		{"excluded", "~requires-smm", "yes", debian, "50-secure.json has the feature requires-smm"},
		{"missing feature", "amd-sev", "", debian, "60-plain.json lacks the feature amd-sev"},
		{"nothing there", "", "", nil, "install firmware"},
		{"BIOS", "", "", map[string]string{"1.json": replace("uefi", "bios")}, "is no UEFI firmware"},
		{"other architecture", "", "", map[string]string{"1.json": replace("x86_64", "aarch64")}, "not for x86-64"},
		{"other machine", "", "", map[string]string{"1.json": replace("pc-q35", "microvm")}, "not for x86-64"},
		{"memory", "", "", map[string]string{"1.json": replace("flash", "memory")}, "is mapped as memory"},
		{"combined", "", "", map[string]string{"1.json": replace(`"flash"`, `"flash", "mode": "combined"`)}, "is mapped as flash combined"},
		{"no template", "", "", map[string]string{"1.json": replace("/vars", "")}, "names no template"},
		{"bad format", "", "", map[string]string{"1.json": replace(`"format": "raw"`, `"format": "vmdk"`)}, `format "vmdk"`},
		{"not JSON", "", "", map[string]string{"1.json": "hello", "2.json": plain}, "2.json"},
		{"only not JSON", "", "", map[string]string{"1.json": "hello"}, "is not a firmware descriptor"},
		{"no targets", "", "", map[string]string{"1.json": `{"interface-types": ["uefi"], "mapping": {"device": "flash"}}`}, `field "targets" is missing`},
	} {
		f := NewFeatures()
		err := f.SetSecureBoot(c.secureBoot)
		if c.features != "" && err == nil {
			err = f.Set(c.features)
		}
		if err != nil {
			t.Fatal(err)
		}
		d, err := Find([]string{newDirectory(t, c.files)}, f)
		switch {
		case err != nil && (!errors.Is(err, ErrNone) || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		case err == nil && filepath.Base(d.Path) != c.want:
			t.Errorf("%s: %s, want %s", c.name, d.Path, c.want)
		}
	}
}

func TestFeatures(t *testing.T) {
	f := NewFeatures()
	if err := f.check([]string{"enrolled-keys"}); err == nil {
		t.Error("enrolled keys are not excluded by default")
	}
	if err := f.Set(""); err != nil || f.check([]string{"enrolled-keys"}) != nil {
		t.Error("an empty list does not forget the default")
	}
	for _, bad := range []string{"nope", "~nope", "secure-boot,", ",", "~"} {
		if err := f.Set(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	if err := f.SetSecureBoot("maybe"); err == nil {
		t.Error("maybe is taken")
	}
}

func TestLoadFor(t *testing.T) {
	dir := newDirectory(t, map[string]string{"my.json": newDescriptor(`"requires-smm"`), "x.json": "{}", "code.fd": "x"})
	if d, err := LoadFor(dir + "/my.json"); err != nil || !d.RequiresSMM() || d.Mapping.Template.Path != "/vars" {
		t.Errorf("%+v %v", d, err)
	}
	if d, err := LoadFor(dir + "/code.fd"); err != nil || d.Mapping.Executable.Path != dir+"/code.fd" {
		t.Errorf("%+v %v", d, err)
	}
	for _, bad := range []string{"/x.json", "/missing.json", ""} {
		if _, err := LoadFor(dir + bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// erased is a variable store that the firmware has yet to format.
func erased(n int) []byte { return []byte(strings.Repeat("\xff", n)) }

// TestOpenState: the file is made once, complete, and refused if it is of
// other firmware or no variables at all.
func TestOpenState(t *testing.T) {
	dir := t.TempDir()
	path, template := filepath.Join(dir, "state"), erased(8192)
	for range 2 {
		if err := OpenState(path, template); err != nil {
			t.Fatal(err)
		}
	}
	if fi, err := os.Stat(path); err != nil || fi.Size() != 8192 || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", fi, err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("left behind: %v %v", names, err)
	}
	if err := OpenState(path, erased(4096)); err == nil || !strings.Contains(err.Error(), "has 8192 bytes, but the variables of this firmware take 4096") {
		t.Errorf("%v", err)
	}
	if err := os.WriteFile(path, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := OpenState(path, template); err == nil || !strings.Contains(err.Error(), "is not a store of EFI variables") {
		t.Errorf("%v", err)
	}
	if err := OpenState(dir, template); err == nil || !strings.Contains(err.Error(), "is not a regular file") {
		t.Errorf("%v", err)
	}
	if err := OpenState(dir+"/no/state", template); err == nil || !strings.Contains(err.Error(), "say where with --efi-nvram-state=: ") || strings.Contains(err.Error(), "no/state.") {
		t.Errorf("%v", err)
	}
}

func TestReadTemplate(t *testing.T) {
	dir := newDirectory(t, map[string]string{"good": string(erased(4096)), "bad": "hello", "big": strings.Repeat("\xff", maxImage+1)})
	file := func(path string) (io.ReadCloser, error) { return os.Open(path) }
	if b, err := ReadTemplate(dir+"/good", file); err != nil || len(b) != 4096 {
		t.Errorf("%d %v", len(b), err)
	}
	for name, want := range map[string]string{"bad": "is not a template", "big": "larger than 16 MiB", "missing": "no such file"} {
		if _, err := ReadTemplate(filepath.Join(dir, name), file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
