package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// hostJob runs on a systemd host, in /g. Each check prints its verdict.
const hostJob = `#!/bin/bash
cd /g
exec >job.log 2>&1
check() { # NAME COMMAND...
	local name=$1; shift
	if out=$("$@" 2>&1); then echo "PASS $name"; else echo "FAIL $name: $? $out"; fi
}
has() { grep -q -- "$1" <<<"$2" || { echo "no $1 in: $2"; return 1; }; }
run="./gvmspawn -D tree --linux=kernel --initrd=kernel --ram=64M --console-transport=serial --console=read-only"
boot() { # NAME ARGS...
	local name=$1; shift
	$run -M "$name" "$@" </dev/null >"$name.out" 2>"$name.err" &
	pid=$!
	for _ in $(seq 100); do grep -q "tiny guest" "$name.out" && return; sleep .1; done
}
status() { varlinkctl call /run/systemd/vmspawn/$1/control io.systemd.MachineInstance.QueryStatus '{}'; }

boot tiny --register=yes
list=$(varlinkctl call /run/systemd/machine/io.systemd.Machine io.systemd.Machine.List '{"name":"tiny"}')
for field in '"class":"vm"' '"service":"systemd-vmspawn"' '"rootDirectory":"/g/tree"' '"unit":"machine-tiny.scope"' '"vSockCid":' \
	'"sshAddress":"vsock-mux/' '"sshPrivateKeyPath":"/run/' '"controlAddress":"/run/systemd/vmspawn/tiny/control"' "\"pid\":$pid"; do
	check "registered $field" has "$field" "$list"
done
check introspect varlinkctl introspect /run/systemd/vmspawn/tiny/control io.systemd.MachineInstance
check running has '"running":true' "$(status tiny)"
check pause timeout 10 machinectl pause tiny
check paused has '"running":false' "$(status tiny)"
check resume timeout 10 machinectl resume tiny
check resumed has '"running":true' "$(status tiny)"
check poweroff timeout 10 machinectl poweroff tiny
wait $pid; check "end after poweroff" [ $? = 0 ]
check "power button" grep -q B tiny.out
check unregistered has "No machines" "$(machinectl list --no-pager)"

boot sliced --slice=foo --property=MemoryMax=512M
check scope has "Slice=foo.slice
MemoryMax=536870912" "$(systemctl show machine-sliced.scope -p Slice,MemoryMax)"
check terminate timeout 10 machinectl terminate sliced
wait $pid; check "end after terminate" [ $? = 0 ]

boot unit
check "stop of the scope" systemctl stop machine-unit.scope
wait $pid; check "end after stop" [ $? = 0 ]

systemd-run -q --unit=ready --service-type=notify --property=WorkingDirectory=/g --setenv=HOME=/root $run -M ready --register=no --vsock=no
check "READY=1" has "ActiveState=active" "$(systemctl show ready -p ActiveState)"
check "STATUS=" has "StatusText=VM started." "$(systemctl show ready -p StatusText)"
systemctl stop ready
check "clean stop" has "Result=success" "$(systemctl show ready -p Result)"
check "nothing is left" [ -z "$(ls /run/systemd/vmspawn)" ]
check "journal-remote" ./journal.test
echo END
`

// TestLongSystemdHost registers machines with a real systemd-machined, in a
// container with the newest systemd, and has machinectl and systemd control
// them: acceptance 11 and 13 of vmspawn.md, and the shape of systemd's own
// TEST-87-AUX-UTILS-VM.vmspawn.
func TestLongSystemdHost(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("makes a container with systemd: set GVMSPAWN_LONG=1")
	}
	nspawn, err := exec.LookPath("systemd-nspawn")
	if err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and systemd-nspawn (the package systemd-container)")
	}
	host := guesttest.Asset(t, "host-sid")
	dir := t.TempDir()
	tinyCommand(t, dir)
	copyFile(t, guesttest.Binary(t), filepath.Join(dir, "gvmspawn"))
	build := exec.Command("go", "test", "-c", "-o", filepath.Join(dir, "journal.test"), "./internal/journal")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	if err := os.WriteFile(filepath.Join(dir, "job.sh"), []byte(hostJob), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, nspawn, "--register=no", "--keep-unit", "-q", "-D", host, "--bind="+dir+":/g", "--bind=/dev/kvm", "--link-journal=no",
		"--set-credential=systemd.extra-unit.job.service:[Unit]\nAfter=multi-user.target systemd-machined.service\n[Service]\nType=oneshot\nExecStart=/g/job.sh\nExecStopPost=systemctl poweroff --no-block\n",
		"--set-credential=systemd.unit-dropin.multi-user.target:[Unit]\nWants=job.service\n", "-b")
	c.Env = append(os.Environ(), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1")
	console, err := c.CombinedOutput()
	log, rerr := os.ReadFile(filepath.Join(dir, "job.log"))
	if err != nil || rerr != nil {
		t.Fatalf("%v %v\n%s\n%s", err, rerr, console, log)
	}
	if !strings.HasSuffix(string(log), "END\n") || strings.Contains(string(log), "FAIL ") {
		t.Errorf("%s", log)
	}
	t.Logf("%d checks", strings.Count(string(log), "PASS "))
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}
