package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/instance"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/sshclient"
)

// soakTime is how long TestLongSoak runs; GVMSPAWN_SOAK in the environment, such as
// "5m", says otherwise.
const soakTime = time.Hour

// TestLongSoak runs every device at once, in a machine of two software CPUs and with
// the race detector: a disk written and verified, the user-mode network, vsock both
// ways, files shared, memory plugged and taken away, the console, drivers unbound and
// bound (device resets under load). Nothing may race, stop or go wrong, and the
// program's memory stays bounded.
func TestLongSoak(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("runs for an hour: set GVMSPAWN_LONG=1, and GVMSPAWN_SOAK=5m for less")
	}
	limit := soakTime
	if s := os.Getenv("GVMSPAWN_SOAK"); s != "" {
		var err error
		if limit, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	kernel := softBoot(t, "kernel-trixie")
	dir := t.TempDir()
	server := echoServer(t, net.JoinHostPort(hostAddress(t), "0"))
	tree := guestTree(t, fmt.Sprintf(`
ip link set lo up; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2
mkdir -p /stress /mnt
(while :; do guest echo 1234 >/dev/null; done) &
(n=0; while [ ! -e /stop ]; do n=$((n+1)); guest connect %s 50; ping -c 1 -W 20 10.0.2.2 >/dev/null || echo "CHECK ping FAIL"; echo "ROUND net $n"; done) &
(n=0; while [ ! -e /stop ]; do n=$((n+1)); head -c 3000000 /dev/urandom >/tmp-disk; dd if=/tmp-disk of=/dev/vda bs=64k seek=$((n%%20*50)) conv=fsync 2>/dev/null; echo 1 >/proc/sys/vm/drop_caches
	[ "$(dd if=/dev/vda bs=64k skip=$((n%%20*50)) 2>/dev/null | head -c 3000000 | md5sum)" = "$(md5sum </tmp-disk)" ] || echo "CHECK disk FAIL: round $n"; echo "ROUND disk $n"; done) &
(n=0; while [ ! -e /stop ]; do n=$((n+1)); rm -rf /stress/*; guest stress /stress | grep -v SUM; echo "ROUND files $n"; done) &
(n=0; while [ ! -e /stop ]; do n=$((n+1)); head -c 4096 /dev/hwrng | wc -c | grep -q 4096 || echo "CHECK rng FAIL"; seq 2000; echo "ROUND console $n"; sleep 1; done) &
(n=0; d=$(ls /sys/bus/virtio/drivers/virtio_balloon | grep virtio); while [ ! -e /stop ]; do n=$((n+1))
	echo $d >/sys/bus/virtio/drivers/virtio_balloon/unbind; echo $d >/sys/bus/virtio/drivers/virtio_balloon/bind; echo "ROUND reset $n"; sleep 0.2; done) &
echo SOAK begins
while [ ! -e /stop ]; do sleep 1; done
sleep 10; sync; echo SOAK ends; poweroff -f`, server))
	disk := filepath.Join(dir, "disk")
	writeFile(t, disk, nil, 0o600)
	if err := os.Truncate(disk, 96<<20); err != nil {
		t.Fatal(err)
	}
	m := newMachine(t, dir, kernel, "-D", tree, "--cpus=2", "--ram=512M:1G", "-M", "soak", "--network-user-mode", "--extra-drive="+disk, "--bind="+dir, "quiet")
	m.Path = raceBinary(t)
	m.Args[0] = m.Path
	m.start()
	m.waitFor("SOAK begins")
	vsock := soakVsock(t, filepath.Join(dir, "run", "soak", instance.VsockSocket))
	half, stood := 0, time.Duration(0)
	for begin, last := time.Now(), time.Now(); time.Since(begin) < limit; time.Sleep(time.Second) {
		// Who stops the test with SIGSTOP stops the machine, too: its watchdog and
		// its time-outs then tell of the time that passed meanwhile.
		if d := time.Since(last); d > hostPause {
			stood += d
		}
		last = time.Now()
		select {
		case <-m.ended:
			t.Fatal("the machine ended")
		default:
		}
		size := []string{"512M", "1G", "640M", "400M"}[int(time.Since(begin)/time.Second)%4]
		if r := execute(t, dir, "memory", "soak", size); r.status != 0 {
			t.Errorf("memory %s: %s", size, r.stderr)
		}
		if half == 0 && time.Since(begin) > limit/2 {
			half = soakMemory(t, m)
		}
	}
	if now := soakMemory(t, m); now > soakMost {
		t.Errorf("the program has %d MiB in memory, %d after half of the time", now, half)
	}
	writeFile(t, filepath.Join(tree, "stop"), nil, 0o644)
	if s := m.status(); s != 0 {
		t.Errorf("status %d", s)
	}
	out := m.out.String()
	for _, what := range []string{"net", "disk", "files", "console", "reset"} {
		n := strings.Count(out, "ROUND "+what)
		t.Logf("%d rounds of %s", n, what)
		if n < 2 {
			t.Errorf("%d rounds of %s", n, what)
		}
	}
	t.Logf("%d vsock connections, %d MiB after half of the time, %v", vsock(), half, limit)
	wrong := grepLines(out, "FAIL", "BUG:")
	if stood > 0 {
		t.Logf("the host stood still for %v", stood)
		wrong = withoutLines(wrong, "soft lockup", "i/o timeout", "CHECK ping FAIL")
	}
	if wrong != "" || strings.Contains(m.errs.String(), "DATA RACE") {
		t.Errorf("something went wrong:\n%s\n%s", tailOf(wrong), tailOf(m.errs.String()))
	}
}

// raceBinary builds the program with the race detector.
func raceBinary(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "gvmspawn-race")
	build := exec.Command("go", "build", "-race", "-o", path, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := build.CombinedOutput(); err != nil {
		t.Skipf("cannot build with the race detector: %v\n%s", err, out)
	}
	return path
}

// soakVsock connects to the guest's echo server again and again, and returns a function
// that ends it and tells how many connections there were.
func soakVsock(t *testing.T, mux string) func() int {
	t.Helper()
	stop, done := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		defer func() { done <- n }()
		data := bytes.Repeat([]byte("vsock "), 10_000)
		for {
			select {
			case <-stop:
				return
			default:
			}
			c, err := sshclient.DialMux(t.Context(), mux, 1234)
			if err != nil {
				time.Sleep(100 * time.Millisecond) // between two of the guest's servers, or it has ended
				continue
			}
			go c.Write(data) //nolint:errcheck // seen below
			c.SetDeadline(time.Now().Add(time.Minute))
			got := make([]byte, len(data))
			if _, err := io.ReadFull(c, got); err == nil && !bytes.Equal(got, data) {
				t.Error("vsock: the echo differs")
			} else if err == nil {
				n++
			}
			c.Close()
		}
	}()
	return func() int { close(stop); return <-done }
}

// hostPause is how long a turn of the test may take, which sets the memory's size.
const hostPause = 15 * time.Second

// soakMost is the most that the program may have in memory, in MiB: the guest's 1 GiB and
// as much again, which the race detector needs.
const soakMost = 2048

// soakMemory is the program's memory in MiB, with the guest's.
func soakMemory(t *testing.T, m *booted) int {
	t.Helper()
	n := resident(t, m)
	t.Logf("%d MiB in memory", n)
	return n
}

// withoutLines drops the lines that have one of the words.
func withoutLines(s string, words ...string) string {
	drop := grepLines(s, words...)
	var b strings.Builder
	for line := range strings.Lines(s) {
		if !strings.Contains(drop, line) {
			b.WriteString(line)
		}
	}
	return b.String()
}

// grepLines are the lines that have one of the words.
func grepLines(s string, words ...string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		for _, w := range words {
			if strings.Contains(line, w) {
				b.WriteString(line)
				break
			}
		}
	}
	return b.String()
}
