package initrd

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// blockClass makes a directory like /sys/class/block with disks of two
// controllers, and many others, so that it takes several getdents64 calls.
func blockClass(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	class := filepath.Join(dir, "class/block")
	add := func(name, place, file, content string) {
		t.Helper()
		target := filepath.Join("../../devices", place, name)
		at := filepath.Join(class, target)
		if err := os.MkdirAll(at, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(at, file), []byte(content), 0o444); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, filepath.Join(class, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(class, 0o755); err != nil {
		t.Fatal(err)
	}
	const scsi = "/virtio1/host0/target0:0:0/0:0:0:0/block"
	add("sdb", "pci0000:00/0000:00:05.0"+scsi, "removable", "0\n")
	for _, n := range []string{"1", "2", "12"} {
		add("sdb"+n, "pci0000:00/0000:00:05.0"+scsi+"/sdb", "partition", n+"\n")
	}
	add("sda", "pci0000:00/0000:00:06.0"+scsi, "removable", "0\n")
	add("sda2", "pci0000:00/0000:00:06.0"+scsi+"/sda", "partition", "2\n")
	for i := range 300 {
		add(fmt.Sprintf("loop%d", i), "virtual/block", "removable", "0\n")
	}
	return class
}

// TestFindDevice: the place and the partition's number decide, whatever the names.
func TestFindDevice(t *testing.T) {
	class := blockClass(t)
	for _, c := range []struct{ place, file, content, want string }{
		{"pci0000:00/0000:00:05.0", "removable", "", "/dev/sdb"},
		{"pci0000:00/0000:00:06.0", "removable", "", "/dev/sda"},
		{"pci0000:00/0000:00:05.0", "partition", "2\n", "/dev/sdb2"},
		{"pci0000:00/0000:00:05.0", "partition", "12\n", "/dev/sdb12"},
		{"pci0000:00/0000:00:06.0", "partition", "2\n", "/dev/sda2"},
		{"pci0000:00/0000:00:06.0", "partition", "1\n", ""},
		{"pci0000:00/0000:00:05", "removable", "", ""},
		{"pci0000:00/0000:00:07.0", "removable", "", ""},
	} {
		p := NewProgram()
		p.Reserve()
		p.FindDevice(class, "../../devices/"+c.place+"/", c.file, c.content)
		p.OnError(func() { p.Report("find"); p.Exit(1) })
		p.Syscall(unix.SYS_WRITE, Int(1), p.OtherKept(), Int(len(c.want)+1))
		out, code := execProgram(t, p)
		if c.want == "" {
			if out != "find: errno 19\n" || code != 1 {
				t.Errorf("%v: %q, %d", c, out, code)
			}
		} else if out != c.want+"\x00" || code != 0 {
			t.Errorf("%v: %q, %d", c, out, code)
		}
	}
	p := NewProgram()
	p.Reserve()
	p.FindDevice(class+"/nowhere", "", "partition", "")
	p.OnError(func() { p.Report("find") })
	if out, _ := execProgram(t, p); out != "find: errno 2\n" {
		t.Errorf("%q", out)
	}
}
