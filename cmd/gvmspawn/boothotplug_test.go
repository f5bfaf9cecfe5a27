package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/control"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/varlink"
	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// hotplugScript tells of disks that come and go, and writes its name to each
// that can be written. A disk is known by the first line of its image.
const hotplugScript = `
known=
echo "BOOTED"
while :; do
	now=
	for d in /sys/block/vd* /sys/block/sd* /sys/block/nvme*n*; do
		[ -e $d/size ] && [ "$(cat $d/size)" != 0 ] && now="$now ${d##*/}"
	done
	for n in $now; do
		case "$known " in *" $n "*) ;; *)
			line=$(head -n 1 /dev/$n)
			echo "guest wrote to $n" | dd of=/dev/$n bs=512 seek=8 conv=sync,fsync 2>/dev/null && w=written || w=refused
			echo "CAME $line, $w, as $n with $(cat /sys/block/$n/size) sectors"
			eval "line_$n='$line'" ;;
		esac
	done
	for n in $known; do
		case "$now " in *" $n "*) ;; *) eval "echo \"WENT \$line_$n\"" ;; esac
	done
	known=$now
	sleep 0.1
done`

// plugged is a machine whose disks come and go.
type plugged struct {
	*booted
	socket string
	events chan string
}

// add plugs an image in, which has to be seen by the guest.
func (p *plugged) add(id, driver, format, path string, flag int, want string) string {
	p.t.Helper()
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	defer f.Close()
	n := strings.Count(p.out.String(), want)
	got, err := control.AddDisk(p.t.Context(), p.socket, control.Disk{ID: id, Driver: driver, Format: format, Discard: true, File: f})
	if err != nil {
		p.t.Fatalf("add %s: %v", path, err)
	}
	p.waitCount(want, n+1)
	return got
}

// remove takes a disk out, which has to be seen by the guest and the subscriber.
func (p *plugged) remove(id, line string) {
	p.t.Helper()
	n := strings.Count(p.out.String(), "WENT "+line)
	if err := control.RemoveDisk(p.t.Context(), p.socket, id); err != nil {
		p.t.Fatalf("remove %s: %v", id, err)
	}
	p.waitCount("WENT "+line, n+1)
	select {
	case e := <-p.events:
		if e != id {
			p.t.Errorf("event for %s, want %s", e, id)
		}
	case <-time.After(bootTime):
		p.t.Fatalf("no event for %s", id)
	}
}

func (p *plugged) list() (ids string) {
	p.t.Helper()
	all, err := control.ListDisks(p.t.Context(), p.socket)
	if err != nil {
		p.t.Fatal(err)
	}
	for _, d := range all {
		ids += fmt.Sprintf("%s:%s:%s:%v ", d.ID, d.Driver, d.Format, d.ReadOnly)
	}
	return ids
}

func (p *plugged) wantError(want string, err error) {
	p.t.Helper()
	var e *varlink.Error
	if !errors.As(err, &e) || e.Name != "io.systemd.VirtualMachineInstance."+want {
		p.t.Errorf("%v, want %s", err, want)
	}
}

// subscribe gathers the names of removed disks.
func (p *plugged) subscribe() {
	c, err := varlink.Dial(p.t.Context(), p.socket)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	p.events = make(chan string, 100)
	ready := make(chan struct{})
	go c.CallMore(context.Background(), "io.systemd.MachineInstance.SubscribeEvents", map[string]any{"filter": []string{control.EventDiskRemoved}}, func(raw json.RawMessage) error { //nolint:errcheck // it ends with the machine
		var e struct {
			Event string
			Data  struct{ ID string }
		}
		if err := json.Unmarshal(raw, &e); err != nil {
			return err
		}
		if e.Event == control.EventDiskRemoved {
			p.events <- e.Data.ID
		} else {
			close(ready)
		}
		return nil
	})
	<-ready
}

// verbs does the same with attach-disk, detach-disk and list-disks.
func (p *plugged) verbs(dir, image string) {
	p.t.Helper()
	for _, c := range []struct {
		args, stdout, stderr string
	}{
		{"attach-disk plug -i by-verb scsi-cd:" + image, "by-verb\n", ""},
		{"attach-disk plug -i by-verb nvme:" + image, "", "it has a disk of that name already"},
		{"attach-disk plug -i 7up nvme:" + image, "", "the name must be a letter"},
		{"attach-disk plug /nonexistent", "", "/nonexistent: no such file"},
		{"attach-disk plug qcow2:" + filepath.Join(dir, "three"), "", "not a qcow2 image"},
		{"attach-disk plug", "", "attach-disk needs the name of a machine and an image"},
		{"list-disks plug", "by-verb  scsi_cd     raw     yes\n", ""},
		{"detach-disk plug nothing", "", "it has no disk of that name"},
		{"detach-disk plug by-verb", "", ""},
	} {
		r := execute(p.t, dir, strings.Fields(c.args)...)
		if (r.status == 0) != (c.stderr == "") || !strings.Contains(r.stdout, c.stdout) || !strings.Contains(r.stderr, c.stderr) {
			p.t.Errorf("%s: status %d, %q, %q", c.args, r.status, r.stdout, r.stderr)
		}
	}
	select {
	case e := <-p.events:
		if e != "by-verb" {
			p.t.Errorf("event for %s", e)
		}
	case <-time.After(bootTime):
		p.t.Fatal("by-verb stays")
	}
}

// TestBootHotplug is the disk hot-plug test of vmspawn.md §4 with a stock
// kernel: disks of all types come and go, and survive a reboot.
func TestBootHotplug(t *testing.T) {
	kernel := softBoot(t, "kernel-trixie")
	qemuImg := guesttest.Tool(t, "qemu-img")
	dir := t.TempDir()
	raw := func(name string) string {
		path := filepath.Join(dir, name)
		writeFile(t, path, []byte(name+"\n"), 0o600)
		if err := os.Truncate(path, 16<<20); err != nil {
			t.Fatal(err)
		}
		return path
	}
	one, two := raw("one"), raw("two")
	qcow2 := filepath.Join(dir, "three.qcow2")
	toolOutput(t, qemuImg, "convert", "-q", "-f", "raw", "-O", "qcow2", raw("three"), qcow2)
	m := newMachine(t, dir, kernel, "-D", guestTree(t, hotplugScript), "-M", "plug", "--vsock=no", "--cpus=2",
		"--extra-drive="+raw("boot0"), "--extra-drive=virtio-scsi:"+raw("boot1"), "quiet")
	m.start()
	m.waitFor("CAME boot0")
	m.waitFor("CAME boot1")
	sockets, err := filepath.Glob(filepath.Join(dir, "run/*/control"))
	if err != nil || len(sockets) != 1 {
		sockets = []string{filepath.Join(dir, "run/control")}
	}
	p := &plugged{booted: m, socket: sockets[0]}
	p.subscribe()
	const boot = "bd0:virtio_blk:raw:false bd1:scsi_hd:raw:false "
	if got := p.list(); got != boot {
		t.Errorf("at boot: %s", got)
	}
	// Attach, list, detach, by each driver; attach again.
	for _, driver := range []string{"virtio_blk", "nvme", "scsi_hd"} {
		p.add("scratch-01", driver, "raw", one, os.O_RDWR, "CAME one")
		if got := p.list(); got != boot+"scratch-01:"+driver+":raw:false " {
			t.Errorf("%s: %s", driver, got)
		}
		p.remove("scratch-01", "one")
	}
	if got := p.list(); got != boot {
		t.Errorf("afterwards: %s", got)
	}
	if data, err := os.ReadFile(one); err != nil || !strings.HasPrefix(string(data[4096:]), "guest wrote to ") {
		t.Errorf("%q, %v", data[4096:4128], err)
	}
	// Read-only, because the file is; two at once; a name of the machine's own.
	p.add("ro-disk", "virtio_blk", "raw", one, os.O_RDONLY, "CAME one, refused")
	auto := p.add("", "nvme", "raw", two, os.O_RDWR, "CAME two, written")
	if got := p.list(); got != boot+"ro-disk:virtio_blk:raw:true bd2:nvme:raw:false " || auto != "bd2" {
		t.Errorf("two: %s, %s", got, auto)
	}
	f, err := os.OpenFile(two, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, err = control.AddDisk(t.Context(), p.socket, control.Disk{ID: "ro-disk", Driver: "nvme", Format: "raw", File: f})
	p.wantError("BlockDeviceIdInUse", err)
	_, err = control.AddDisk(t.Context(), p.socket, control.Disk{ID: "again", Driver: "nvme", Format: "raw", File: f})
	p.wantError("BlockBackendBusy", err)
	p.wantError("NoSuchBlockDevice", control.RemoveDisk(t.Context(), p.socket, "does-not-exist-12345"))
	p.remove("ro-disk", "one")
	p.remove("bd1", "boot1") // one that was there at boot
	p.verbs(dir, one)
	p.add("qcow2-test", "virtio_blk", "qcow2", qcow2, os.O_RDWR, "CAME three")

	// What is there stays over a reboot.
	if err := control.Call(t.Context(), p.socket, "Reboot"); err != nil {
		t.Fatal(err)
	}
	m.waitCount("BOOTED", 2)
	m.waitCount("CAME boot0", 2)
	m.waitCount("CAME two", 2)
	m.waitCount("CAME three", 2)
	if got := p.list(); got != "bd0:virtio_blk:raw:false bd2:nvme:raw:false qcow2-test:virtio_blk:qcow2:false " {
		t.Errorf("after the reboot: %s", got)
	}
	p.remove("qcow2-test", "three")
	toolOutput(t, qemuImg, "check", "-f", "qcow2", qcow2)
	p.remove("bd2", "two")
	if err := control.Call(t.Context(), p.socket, "Terminate"); err != nil {
		t.Fatal(err)
	}
	if s := m.status(); s != 0 {
		t.Errorf("status %d", s)
	}
}
