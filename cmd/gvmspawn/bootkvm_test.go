package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// TestBootTruncatedDAX: a file shrinks under a DAX mapping that the guest has on
// genuine KVM. Linux tells the fault's address since 6.8 only; with either, the
// guest reads zeroes and goes on.
func TestBootTruncatedDAX(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("boots machines in the testbed: set GVMSPAWN_LONG=1")
	}
	for _, host := range []string{"kernel-bookworm", "kernel-trixie"} {
		t.Run(host, func(t *testing.T) {
			tree := guestTree(t, `guest truncated /big; poweroff -f`)
			writeFile(t, filepath.Join(tree, "big"), []byte(strings.Repeat("1", 8<<20)), 0o644)
			res := guesttest.Testbed{
				Kernel:  host,
				Files:   map[string]string{"bin/gvmspawn": guesttest.Binary(t), "tree": tree, "vmlinuz": guesttest.KernelAsset(t, "kernel-trixie").Path},
				Timeout: 20 * time.Minute,
				Script: `
uname -r
touch /tmp/out
{ timeout -s KILL 30 gvmspawn -q --kvm=yes --vsock=no --dax=64M -D /tree --linux=/vmlinuz --ram=256M quiet 2>&1; echo "STATUS $?"; } | tee /tmp/out &
while ! grep -q MAPPED /tmp/out && ! grep -q STATUS /tmp/out; do sleep 0.1; done
truncate -s 4096 /tree/big
wait`,
			}.Run(t)
			for _, want := range []string{"STATUS 0", "MAPPED", "CHECK truncated ok", "a file shrank under a DAX mapping"} {
				if !strings.Contains(res.Output, want) {
					t.Errorf("no %q", want)
				}
			}
			t.Log(res.Output)
		})
	}
}

// TestBootOftenOnKVM boots the same machine twenty times on genuine KVM, half of them
// with two CPUs: none hangs, none fails. The kernel is the one that starts fastest,
// with 1.2 G instructions from the program's start to its end.
func TestBootOftenOnKVM(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("boots many machines in the testbed: set GVMSPAWN_LONG=1")
	}
	for cpus := 1; cpus <= 2; cpus++ {
		t.Run(fmt.Sprintf("%d CPUs", cpus), func(t *testing.T) {
			again := bootCase{name: "again", kernel: "kernel-bookworm", args: fmt.Sprintf("--cpus=%d do=poweroff quiet", cpus),
				want: fmt.Sprintf("HELLO from 6[.]1[.].* with %d CPU", cpus), after: "true"}
			runOnKVM(t, slices.Repeat([]bootCase{again}, 10))
		})
	}
}

// TestBootKilledOnKVM starts and kills machines on genuine KVM at twenty moments of
// their boot, by SIGKILL and by two SIGTERMs. The module's use count says that
// no VM is left in the kernel; neither are processes, sockets or files, once a
// last machine of the same name has come and gone.
func TestBootKilledOnKVM(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("boots machines in the testbed: set GVMSPAWN_LONG=1")
	}
	kernel := guesttest.KernelAsset(t, "kernel-trixie")
	res := guesttest.Testbed{
		Files:   map[string]string{"bin/gvmspawn": guesttest.Binary(t), "tree": guesttest.BusyboxTree(t, bootInit), "vmlinuz": kernel.Path},
		Timeout: 10 * time.Minute,
		Script: `
spawn() { gvmspawn -q --kvm=yes --vsock=no -D /tree --linux=/vmlinuz --ram=256M -M killed "$@" >/run.log 2>&1; }
state() { echo "vms $(cat /sys/module/kvm_amd/refcnt) processes $(ps | grep -c '[g]vmspawn') files $(find /tmp /run /dev/shm /root ! -type d | wc -l) of it $(find /tmp /run /dev/shm /root -name "*killed*" | wc -l) mounts $(wc -l </proc/mounts) $(ls /proc/sys/fs/binfmt_misc 2>/dev/null)"; }
before=$(state)
i=0
while [ $i -lt 20 ]; do
	spawn do=poweroff quiet &
	sleep $((i / 10)).$((i % 10))
	pid=$(pidof gvmspawn)
	if [ $((i % 2)) = 0 ]; then kill -KILL $pid; else kill -TERM $pid; sleep 0.1; kill -TERM $pid; fi
	wait
	i=$((i + 1))
done
sleep 1
echo "KILLED $(state)"
spawn do=poweroff quiet
echo "STATUS $?"
cat /run.log
echo "BEFORE $before"
echo "AFTER $(state)"
find /tmp /run /dev/shm /root -mindepth 1
[ "$before" = "$(state)" ] && echo SAME`,
	}.Run(t)
	for _, want := range []string{"STATUS 0", "HELLO from 6", "SAME"} {
		if !strings.Contains(res.Output, want) {
			t.Errorf("no %q", want)
		}
	}
	t.Log(res.Output)
}
