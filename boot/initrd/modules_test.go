package initrd

import (
	"bytes"
	"encoding/binary"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"
)

const release = "6.99.0-test"

// ko is a module file with these .modinfo entries: an ELF64 object with a
// section table of three.
func ko(entries ...string) []byte {
	le := binary.LittleEndian
	info := strings.Join(entries, "\x00") + "\x00"
	names := "\x00.modinfo\x00.shstrtab\x00"
	b := make([]byte, 64, 512)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 1)
	le.PutUint16(b[18:], 62)
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[40:], uint64(64+len(info)+len(names)))
	le.PutUint16(b[52:], 64)
	le.PutUint16(b[58:], 64)
	le.PutUint16(b[60:], 3)
	le.PutUint16(b[62:], 2)
	b = append(append(b, info...), names...)
	section := func(name, kind uint32, off, size int) {
		h := make([]byte, 64)
		le.PutUint32(h, name)
		le.PutUint32(h[4:], kind)
		le.PutUint64(h[24:], uint64(off))
		le.PutUint64(h[32:], uint64(size))
		b = append(b, h...)
	}
	section(0, 0, 0, 0)
	section(1, 1, 64, len(info))
	section(10, 3, 64+len(info), len(names))
	return b
}

// testTree is what a kernel package unpacks: no modules.dep.
func testTree() map[string][]byte {
	dir := "lib/modules/" + release + "/"
	return map[string][]byte{
		dir + "modules.builtin":              []byte("kernel/fs/ext4/ext4.ko\nkernel/drivers/firmware/dmi-sysfs.ko\n"),
		dir + "modules.order":                []byte("kernel/virtio/virtio.ko\nkernel/virtio/virtio_ring.ko\nkernel/virtio/virtio_pci.ko\nkernel/fuse/fuse.ko\nkernel/fuse/virtiofs.ko\nkernel/char/virtio-rng.ko\nkernel/gone.ko\n"),
		dir + "kernel/virtio/virtio.ko":      ko("license=GPL", "depends=", "name=virtio"),
		dir + "kernel/virtio/virtio_ring.ko": ko("depends=virtio"),
		dir + "kernel/virtio/virtio_pci.ko":  ko("depends=virtio_ring,virtio", "parm=x"),
		dir + "kernel/fuse/fuse.ko":          ko("license=GPL"),
		dir + "kernel/fuse/virtiofs.ko":      ko("depends=fuse,virtio-ring,ext4"),
		dir + "kernel/char/virtio-rng.ko":    ko("depends=gone"),
	}
}

func writeTree(t testing.TB, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, b := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func testConfig(root string) Config {
	return Config{Release: release, Kernel: "vmlinuz", Places: []Place{{Root: root}}, Root: Root{Source: "root", Types: []string{"virtiofs"}},
		Modules: []Module{{Name: "virtio-pci", Driver: "virtio-pci"}, {Name: "virtiofs", Driver: "virtiofs"}, {Name: "ext4"}, {Name: "virtio_rng", Need: Extra}}}
}

var testOrder = []string{"virtio", "virtio_ring", "virtio_pci", "fuse", "virtiofs"}

func TestBuildFromModulesOrder(t *testing.T) {
	c := testConfig(writeTree(t, testTree()))
	c.CommandLine = `quiet virtio_pci.a=1 virtio-pci.b="x y" init=/my/init -- fuse.no=1`
	img, err := Build(c)
	if err != nil {
		t.Fatal(err)
	}
	// "virtio_rng" needs "gone", whose file is missing, so neither is there.
	if !validOrder(img.Modules) || len(img.Modules) != len(testOrder) {
		t.Errorf("modules %v", img.Modules)
	}
	files := readArchive(t, img)
	if !bytes.Equal(files["m/virtio_pci"], testTree()["lib/modules/"+release+"/kernel/virtio/virtio_pci.ko"]) {
		t.Error("virtio_pci is not what it was")
	}
	for _, want := range []string{"a=1 b=\"x y\"\x00", "/my/init\x00", "requested init"} {
		if !bytes.Contains(files["init"], []byte(want)) {
			t.Errorf("init does not contain %q", want)
		}
	}
}

// validOrder reports whether each module comes behind what it needs.
func validOrder(mods []string) bool {
	at := func(m string) int { return slices.Index(mods, m) }
	return at("virtio") >= 0 && at("virtio") < at("virtio_ring") && at("virtio_ring") < at("virtio_pci") &&
		at("fuse") >= 0 && at("fuse") < at("virtiofs") && at("virtio_ring") < at("virtiofs")
}

// readArchive reads the archive by u-root's reader: name → contents.
func readArchive(t *testing.T, img *Image) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	err := cpio.ForEachRecord(cpio.Newc.Reader(img), func(r cpio.Record) error {
		b, err := io.ReadAll(io.NewSectionReader(r.ReaderAt, 0, int64(r.FileSize)))
		files[r.Name] = b
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"dev", "dev/console", "root", "m", "init"} {
		if _, ok := files[name]; !ok {
			t.Errorf("no %s in the archive", name)
		}
	}
	return files
}

// modules.dep(5): the dependencies are those of the line.
func TestBuildFromModulesDep(t *testing.T) {
	tree := testTree()
	tree["lib/modules/"+release+"/modules.dep"] = []byte(`kernel/virtio/virtio.ko:
kernel/virtio/virtio_ring.ko: kernel/virtio/virtio.ko
kernel/virtio/virtio_pci.ko: kernel/virtio/virtio_ring.ko kernel/virtio/virtio.ko
kernel/fuse/fuse.ko:
kernel/fuse/virtiofs.ko: kernel/fuse/fuse.ko kernel/virtio/virtio_ring.ko kernel/virtio/virtio.ko
`)
	img, err := Build(testConfig(writeTree(t, tree)))
	if err != nil || !slices.Equal(img.Modules, testOrder) {
		t.Errorf("%v, %v", img, err)
	}
}

func compress(t *testing.T, suffix string, b []byte) []byte {
	var out bytes.Buffer
	var w io.WriteCloser
	var err error
	switch suffix {
	case ".gz":
		w = gzip.NewWriter(&out)
	case ".zst":
		w, err = zstd.NewWriter(&out)
	case ".xz":
		w, err = xz.WriterConfig{CheckSum: xz.CRC32}.NewWriter(&out)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestBuildCompressedModules(t *testing.T) {
	for _, suffix := range []string{".xz", ".zst", ".gz"} {
		tree := testTree()
		for name, b := range maps.Clone(tree) {
			if strings.HasSuffix(name, ".ko") {
				delete(tree, name)
				tree[name+suffix] = compress(t, suffix, b)
			}
		}
		img, err := Build(testConfig(writeTree(t, tree)))
		if err != nil {
			t.Fatal(err)
		}
		if got := readArchive(t, img)["m/fuse"]; !bytes.Equal(got, ko("license=GPL")) {
			t.Errorf("%s: %q", suffix, got)
		}
	}
}

func TestBuildNothing(t *testing.T) {
	builtin := map[string][]byte{"usr/lib/modules/" + release + "/modules.builtin": []byte("kernel/virtio_pci.ko\nkernel/virtiofs.ko\nkernel/ext4.ko\n")}
	has := func(string) (bool, bool) { return true, true }
	for name, c := range map[string]Config{
		"modules.builtin": testConfig(writeTree(t, builtin)),
		"kernel searched": {Release: release, Modules: testConfig("").Modules[:2], BuiltIn: has},
		"nothing wanted":  {Release: release},
	} {
		if img, err := Build(c); img != nil || err != nil {
			t.Errorf("%s: %v, %v", name, img, err)
		}
	}
}

// Where the list of built-in modules is in a package that is not installed, the
// kernel itself is searched; where it is there, it is believed.
func TestBuildWithoutList(t *testing.T) {
	dir := "lib/modules/" + release + "/"
	tree := testTree()
	delete(tree, dir+"modules.builtin")
	for name := range tree {
		if strings.Contains(name, "virtio_pci") {
			delete(tree, name)
		}
	}
	c := testConfig(writeTree(t, tree))
	c.Modules = c.Modules[:2]
	c.Modules[1] = Module{Name: "fuse"}
	if _, err := Build(c); err == nil || !strings.Contains(err.Error(), "virtio_pci") {
		t.Errorf("an unknown kernel: %v", err)
	}
	c.BuiltIn = func(driver string) (bool, bool) { return driver == "virtio-pci", true }
	if img, err := Build(c); err != nil || !slices.Equal(img.Modules, []string{"fuse"}) {
		t.Errorf("a kernel with the driver: %v", err)
	}
	tree[dir+"modules.builtin"] = []byte("kernel/fs/ext4/ext4.ko\n")
	c.Places[0].Root = writeTree(t, tree)
	if _, err := Build(c); err == nil {
		t.Error("the list was not believed")
	}
}

// An Extra module is worth an initrd only if the guest cannot load it itself.
func TestBuildExtra(t *testing.T) {
	c := testConfig(writeTree(t, testTree()))
	c.Modules = []Module{{Name: "fuse", Need: Extra}}
	if img, err := Build(c); err != nil || img == nil {
		t.Errorf("a module from elsewhere: %v, %v", img, err)
	}
	c.Places[0].Guest = true
	if img, err := Build(c); err != nil || img != nil {
		t.Errorf("a module of the guest's: %v, %v", img, err)
	}
	c.Modules[0].Need = Useful
	if img, err := Build(c); err != nil || img == nil {
		t.Errorf("a useful module: %v, %v", img, err)
	}
}

func TestBuildErrors(t *testing.T) {
	empty, tree := t.TempDir(), testTree()
	delete(tree, "lib/modules/"+release+"/kernel/fuse/fuse.ko")
	broken := testTree()
	broken["lib/modules/"+release+"/kernel/fuse/virtiofs.ko"] = []byte("not a module")
	loop := testTree()
	for i := range 100 {
		loop["lib/modules/"+release+"/modules.order"] = append(loop["lib/modules/"+release+"/modules.order"], []byte("k/m"+strings.Repeat("a", i)+".ko\n")...)
		loop["lib/modules/"+release+"/k/m"+strings.Repeat("a", i)+".ko"] = ko("depends=m" + strings.Repeat("a", i+1))
	}
	loop["lib/modules/"+release+"/kernel/fuse/virtiofs.ko"] = ko("depends=m")
	part := writeTree(t, tree)
	for name, tt := range map[string]struct {
		c    Config
		want []string
	}{
		"nowhere":  {testConfig(empty), []string{"kernel vmlinuz (" + release + ") needs the module virtio-pci", "not found in " + empty + "/lib/modules/" + release}},
		"part":     {testConfig(part), []string{"needs the module fuse", part}},
		"broken":   {testConfig(writeTree(t, broken)), []string{"virtiofs", "not a kernel module"}},
		"too deep": {testConfig(writeTree(t, loop)), []string{"endless dependencies"}},
		"release":  {Config{Kernel: "vmlinux"}, []string{"vmlinux does not say its version"}},
		"evil":     {Config{Kernel: "vmlinux", Release: "../../etc"}, []string{"does not say its version"}},
	} {
		_, err := Build(tt.c)
		for _, want := range tt.want {
			if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %v, want %q", name, err, want)
			}
		}
	}
	// A place is named once, although it may be there for two reasons.
	c := testConfig(empty)
	c.Places = append(c.Places, c.Places[0])
	if _, err := Build(c); err == nil || strings.Count(err.Error(), empty) != 1 {
		t.Errorf("the same place twice: %v", err)
	}
	// The second place has what the first lacks.
	c = testConfig(part)
	c.Places = append(c.Places, Place{Root: writeTree(t, testTree())})
	if _, err := Build(c); err != nil {
		t.Error(err)
	}
	// A searched kernel without the driver.
	c = Config{Release: release, Kernel: "vmlinuz", Modules: c.Modules, BuiltIn: func(d string) (bool, bool) { return d == "virtio-pci", true }}
	if _, err := Build(c); err == nil || !strings.Contains(err.Error(), "needs the module virtiofs, which was not found in any place") {
		t.Error(err)
	}
}

// The guest's tree is hostile: links lead nowhere outside, other files than
// regular ones are not opened.
func TestHostileTree(t *testing.T) {
	outside := writeTree(t, testTree())
	for name, make := range map[string]func(root string) error{
		"lib is a link outside": func(root string) error { return os.Symlink(outside+"/lib", root+"/lib") },
		"dot dot":               func(root string) error { return os.Symlink("../"+filepath.Base(outside)+"/lib", root+"/lib") },
		"modules.builtin is a FIFO": func(root string) error {
			dir := filepath.Join(root, "lib/modules", release)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			return unix.Mkfifo(dir+"/modules.builtin", 0o600)
		},
	} {
		root := filepath.Join(filepath.Dir(outside), "hostile "+name)
		if err := os.Mkdir(root, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := make(root); err != nil {
			t.Fatal(err)
		}
		if _, err := Build(testConfig(root)); err == nil {
			t.Errorf("%s: modules were found outside of the tree", name)
		}
	}
	// An absolute link is relative to the tree, as in the guest: lib → /usr/lib.
	inside := writeTree(t, testTree())
	if err := os.Mkdir(inside+"/usr", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(inside+"/lib", inside+"/usr/lib"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/usr/lib", inside+"/lib"); err != nil {
		t.Fatal(err)
	}
	if img, err := Build(testConfig(inside)); err != nil || img == nil {
		t.Error(err)
	}
}

func TestReadLimit(t *testing.T) {
	tree, err := openTree(Place{Root: writeTree(t, testTree())}, release)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.close()
	if _, err := tree.read("modules.order", 10); err == nil {
		t.Error("a file over the limit was read")
	}
}

func TestNextTo(t *testing.T) {
	want := []Place{{Root: "/x/boot"}, {Root: "/x"}}
	if got := NextTo("/x/boot/vmlinuz", release); !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
	// A kernel in its own module directory.
	tree := testTree()
	dir := filepath.Join(writeTree(t, tree), "lib/modules", release)
	c := testConfig("")
	c.Places = NextTo(dir+"/vmlinuz", release)
	if img, err := Build(c); err != nil || img == nil {
		t.Error(err)
	}
}

func TestWanted(t *testing.T) {
	names := func(mods []Module) (s []string) {
		for _, m := range mods {
			if m.Need == Required {
				s = append(s, m.Name)
			}
		}
		return s
	}
	for _, tt := range []struct {
		root Root
		want []string
	}{
		{Root{Source: "root", Types: []string{"virtiofs"}}, []string{"virtio_pci", "virtiofs"}},
		{Root{Source: "root", Types: []string{"virtiofs"}, MMIO: true}, []string{"virtio_mmio", "virtiofs"}},
		{Root{Source: "/dev/vda2", Types: []string{"ext4"}, Device: true, Drivers: []Module{{Name: "virtio_blk"}}}, []string{"virtio_pci", "virtio_blk", "ext4"}},
		{Root{Types: []string{"ext4", "xfs"}, Block: &BlockDevice{}, Drivers: []Module{{Name: "virtio_scsi"}, {Name: "sr_mod"}}}, []string{"virtio_pci", "virtio_scsi", "sr_mod"}},
		{Root{Types: []string{"ext4"}, Block: &BlockDevice{Size: 512}}, []string{"virtio_pci", "loop", "ext4"}},
	} {
		if got := names(Wanted(tt.root, "virtio_blk")); !slices.Equal(got, tt.want) {
			t.Errorf("%+v: %v", tt.root, got)
		}
	}
}

func TestCommandLine(t *testing.T) {
	for line, want := range map[string][]string{
		"":                           nil,
		"  a  b=c\td ":               {"a", "b=c", "d"},
		`a="x y" "b c"=1 -- init=/x`: {`a="x y"`, `"b c"=1`},
		"a --b -- -- c":              {"a", "--b"},
		`open"quote x`:               {`open"quote x`},
	} {
		if got := words(line); !slices.Equal(got, want) {
			t.Errorf("%q: %q", line, got)
		}
	}
	if got := parameter("init=/a rw init=/b -- init=/c", "init"); got != "/b" {
		t.Errorf("init %q", got)
	}
	want := map[string]string{"a_b": "c=1 d", "x": "y=a.b=c"}
	if got := moduleParams("a-b.c=1 a_b.d .e f. x.y=a.b=c plain g=h.i"); !maps.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

func FuzzModulesDep(f *testing.F) {
	f.Add([]byte("a/b.ko: c.ko d-e.ko.xz\nc.ko:\n:\nx"), []byte("kernel/x.ko\n"))
	f.Fuzz(func(t *testing.T, dep, wanted []byte) {
		x := &index{builtin: map[string]bool{}, files: map[string]string{}, deps: map[string][]string{}, loaded: map[string]bool{}}
		x.parseDep(dep)
		for name := range x.files {
			if strings.Contains(name, "/") || name == "." || name == ".." {
				t.Errorf("name %q", name)
			}
		}
		_ = x.builtin[moduleName(string(wanted))]
	})
}

func FuzzModuleInfo(f *testing.F) {
	f.Add(ko("depends=a,b", "license=GPL"))
	f.Fuzz(func(t *testing.T, b []byte) { _, _ = dependsOf(b) })
}

func BenchmarkBuild(b *testing.B) {
	c := testConfig(writeTree(b, testTree()))
	for b.Loop() {
		if _, err := Build(c); err != nil {
			b.Fatal(err)
		}
	}
}
