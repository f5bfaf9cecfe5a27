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

// hostPrologue begins every job on a systemd host: it runs in /g, and each
// check prints its verdict.
const hostPrologue = `#!/bin/bash
cd /g
exec >job.log 2>&1
check() { # NAME COMMAND...
	local name=$1; shift
	if out=$("$@" 2>&1); then echo "PASS $name ($SECONDS s)"; else echo "FAIL $name: $? $out"; fi
}
has() { grep -q -- "$1" <<<"$2" || { echo "no $1 in: $2"; return 1; }; }
hasnot() { ! grep -q -- "$1" <<<"$2" || { echo "$1 in: $2"; return 1; }; }
soon() { # COMMAND...: it succeeds within 20 s
	for _ in $(seq 200); do "$@" >/dev/null 2>&1 && return; sleep .1; done
	echo "not within 20 s: $*"; return 1
}
run="./gvmspawn -D tree --linux=kernel --initrd=kernel --ram=64M --console-transport=serial --console=read-only"
boot() { # NAME ARGS...
	local name=$1; shift
	$run -M "$name" "$@" </dev/null >"$name.out" 2>"$name.err" &
	pid=$!
	for _ in $(seq 200); do grep -q "tiny guest" "$name.out" && return; sleep .1; done
	echo "FAIL $name does not start: $(cat "$name.err")"
}
I=io.systemd.MachineInstance
status() { varlinkctl call /run/systemd/vmspawn/$1/control $I.Describe '{}'; }
list() { varlinkctl call /run/systemd/machine/io.systemd.Machine io.systemd.Machine.List "{\"name\":\"$1\"}"; }
useradd -m -u 4711 tester
as() { runuser -u tester -- env -C /home/tester HOME=/home/tester XDG_RUNTIME_DIR=/run/user/4711 DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/4711/bus "$@"; }
`

// onHost runs a job in a container with the newest systemd, as a service of
// it, with dir at /g, and fails the test for every check that failed. The
// container's own files are thrown away.
func onHost(t *testing.T, dir, job string, options ...string) {
	t.Helper()
	nspawn, err := exec.LookPath("systemd-nspawn")
	if err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and systemd-nspawn (the package systemd-container)")
	}
	host := guesttest.Asset(t, "host-vmspawn")
	copyFile(t, guesttest.Binary(t), filepath.Join(dir, "gvmspawn"))
	if err := os.WriteFile(filepath.Join(dir, "job.sh"), []byte(hostPrologue+job+"\necho END\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, nspawn, append([]string{"--register=no", "--keep-unit", "-q", "-D", host, "--volatile=overlay", "--private-network", "--bind=" + dir + ":/g", "--link-journal=no",
		"--set-credential=systemd.extra-unit.job.service:[Unit]\nAfter=multi-user.target systemd-machined.service\n[Service]\nType=oneshot\nTimeoutStartSec=infinity\nExecStart=/g/job.sh\nExecStopPost=systemctl poweroff --force --no-block\n",
		"--set-credential=systemd.unit-dropin.multi-user.target:[Unit]\nWants=job.service\n", "-b"}, options...)...)
	for _, dev := range []string{"/dev/kvm", "/dev/net/tun"} {
		if _, err := os.Stat(dev); err == nil {
			c.Args = append(c.Args, "--bind="+dev)
		}
	}
	c.Env = append(os.Environ(), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1")
	console, err := c.CombinedOutput()
	log, rerr := os.ReadFile(filepath.Join(dir, "job.log"))
	if err != nil || rerr != nil {
		t.Fatalf("%v %v\n%s\n%s", err, rerr, console, log)
	}
	if !strings.HasSuffix(string(log), "END\n") || strings.Contains(string(log), "FAIL ") {
		t.Errorf("%s", log)
	}
	t.Logf("%d checks\n%s", strings.Count(string(log), "PASS "), log)
}

// onLongHost skips a test on a systemd host in short runs.
func onLongHost(t *testing.T) {
	t.Helper()
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("makes a container with systemd: set GVMSPAWN_LONG=1")
	}
}

const machinedJob = `
boot tiny --register=yes --uuid=0123456789abcdef0123456789abcdef
list=$(list tiny)
for field in '"class":"vm"' '"service":"systemd-vmspawn"' '"rootDirectory":"/g/tree"' '"unit":"machine-tiny.scope"' '"vSockCid":' '"id":"01234567-\?89ab' \
	'"sshAddress":"vsock-mux/' '"sshPrivateKeyPath":"/run/' '"controlAddress":"/run/systemd/vmspawn/tiny/control"' "\"pid\":$pid"; do
	check "registered $field" has "$field" "$list"
done
check introspect varlinkctl introspect /run/systemd/vmspawn/tiny/control $I
check listed has "tiny *vm *systemd-vmspawn" "$(machinectl list --no-pager)"
check running has '"running":true' "$(status tiny)"
check "QueryStatus of 261" has '"status":"running"' "$(varlinkctl call /run/systemd/vmspawn/tiny/control $I.QueryStatus '{}')"
for filter in '{}' '{"filter":["STOP"]}'; do
	timeout 4 varlinkctl call --more /run/systemd/vmspawn/tiny/control $I.SubscribeEvents "$filter" >"events$filter" 2>&1 &
done
sleep 1
check pause timeout 10 machinectl pause tiny
check paused has '"running":false' "$(status tiny)"
check resume timeout 10 machinectl resume tiny
check resumed has '"running":true' "$(status tiny)"
sleep 3.5
check "event READY" has '"READY"' "$(cat 'events{}')"
check "event STOP" has '"STOP"' "$(cat 'events{}')"
check "event RESUME" has '"RESUME"' "$(cat 'events{}')"
check "filtered STOP" has '"STOP"' "$(cat 'events{"filter":["STOP"]}')"
check "filtered RESUME" hasnot '"RESUME"' "$(cat 'events{"filter":["STOP"]}')"
check inhibitor has "gvmspawn tiny .*sleep .*delay" "$(systemd-inhibit --list --no-pager)"
denied() { ! as varlinkctl call /run/systemd/vmspawn/tiny/control $I.$1 '{}'; }
check "polkit denies Describe" denied Describe
check "polkit denies Pause" denied Pause
check "still running" has '"running":true' "$(status tiny)"
echo 'polkit.addRule(function(action, subject) {
	if (action.id == "org.freedesktop.machine1.manage-machines" && subject.user == "tester") return polkit.Result.YES;
});' >/etc/polkit-1/rules.d/tester.rules
systemctl try-reload-or-restart polkit
check "polkit permits Describe" soon as varlinkctl call /run/systemd/vmspawn/tiny/control $I.Describe '{}'
check "polkit permits Pause" as varlinkctl call /run/systemd/vmspawn/tiny/control $I.Pause '{}'
check "polkit permits Resume" as varlinkctl call /run/systemd/vmspawn/tiny/control $I.Resume '{}'
rm /etc/polkit-1/rules.d/tester.rules
check reboot timeout 10 machinectl reboot tiny
check rebooted soon grep -z -q "tiny guest.*tiny guest" tiny.out
check poweroff timeout 10 machinectl poweroff tiny
wait $pid; check "end after poweroff" [ $? = 0 ]
check "power button" grep -q B tiny.out
check unregistered has "No machines" "$(machinectl list --no-pager)"

boot sliced --slice=foo --property=MemoryMax=512M
check scope has "Slice=foo.slice
MemoryMax=536870912" "$(systemctl show machine-sliced.scope -p Slice,MemoryMax)"
start=$SECONDS
check terminate timeout 10 machinectl terminate sliced
wait $pid; check "end after terminate" [ $? = 0 ]
check "within 10 s" [ $((SECONDS - start)) -le 10 ]

boot unit
check "stop of the scope" systemctl stop machine-unit.scope
wait $pid; check "end after stop" [ $? = 0 ]
check "the scope's stop is the power button" grep -q B unit.out

boot quiet --register=no
check "not registered" has "No machines" "$(machinectl list --no-pager)"
kill $pid; wait $pid
boot taken --register=yes
check "a second of a name" has "is running already" "$($run -M taken 2>&1)"
RUNTIME_DIRECTORY=/run/other $run -M taken --register=yes </dev/null >second 2>&1; check "machined refuses" [ $? = 1 ]
check "and says so" has "systemd-machined refuses the machine: .*MachineExists" "$(cat second)"
kill $pid; wait $pid

# Without the varlink socket, by D-Bus, and without a scope.
systemd-run -q --unit=fallback -p TemporaryFileSystem=/run/systemd/machine -p WorkingDirectory=/g $run -M fallback --register=yes --keep-unit
check "D-Bus fallback" soon machinectl status fallback
check "keeps its unit" has "Unit: fallback.service" "$(machinectl status fallback --no-pager)"
systemctl stop fallback
check "clean stop of the fallback" has "Result=success" "$(systemctl show fallback -p Result)"
`

const managerJob = `
check "service" systemd-run -q --unit=ready --service-type=notify -p WorkingDirectory=/g -p WatchdogSec=2 --setenv=HOME=/root $run -M ready --register=no --vsock=no
check "READY=1" has "ActiveState=active" "$(systemctl show ready -p ActiveState)"
check "STATUS=" has "StatusText=VM started." "$(systemctl show ready -p StatusText)"
sleep 5
check "the watchdog is fed" has "ActiveState=active" "$(systemctl show ready -p ActiveState)"
systemctl stop ready
check "clean stop" has "Result=success" "$(systemctl show ready -p Result)"

# The template units, from an image with a kernel of its own.
cp gvmspawn /usr/local/bin/
cp system/*.service /etc/systemd/system/
mkdir -p /var/lib/machines /etc/systemd/system/gvmspawn@box.service.d
cp disk.raw /var/lib/machines/box.raw
# The tiny guest prints on the serial port and never says that it is ready.
sed -n 's/^ExecStart=.*/[Service]\nExecStart=\n& --console-transport=serial --notify-ready=no/p' system/gvmspawn@.service >/etc/systemd/system/gvmspawn@box.service.d/tiny.conf
systemctl daemon-reload
systemctl start systemd-networkd
check "template unit" timeout 20 systemctl start gvmspawn@box
check "its machine" has "box *vm" "$(machinectl list --no-pager)"
check "its unit" has "gvmspawn@box.service" "$(list box)"
if [ -e /dev/net/tun ]; then
	check "its interface" soon grep -q inet <(ip address show dev vt-box)
	check "configured by networkd" has "80-vm-vt.network" "$(networkctl status vt-box --no-pager)"
fi
check "stop of the template unit" timeout 20 systemctl stop gvmspawn@box
check "its clean end" has "Result=success" "$(systemctl show gvmspawn@box -p Result)"
check "its console" has "tiny guest" "$(journalctl -u gvmspawn@box -o cat --no-pager)"

# The same of a user, with the user's machined.
loginctl enable-linger tester
check "user manager" soon test -S /run/user/4711/systemd/machine/io.systemd.Machine
install -d -o tester /home/tester/.local /home/tester/.local/state /home/tester/.local/state/machines /home/tester/.config /home/tester/.config/systemd /home/tester/.config/systemd/user
cp -r tree kernel /home/tester/
cp user/*.service /home/tester/.config/systemd/user/
cp disk.raw /home/tester/.local/state/machines/mine.raw
install -d /home/tester/.config/systemd/user/gvmspawn@mine.service.d
sed -n 's/^ExecStart=.*/[Service]\nExecStart=\n& --console-transport=serial --notify-ready=no/p' user/gvmspawn@.service >/home/tester/.config/systemd/user/gvmspawn@mine.service.d/tiny.conf
chown -R tester /home/tester
as systemctl --user daemon-reload
check "user's template unit" as timeout 20 systemctl --user start gvmspawn@mine
check "user's machine" soon as machinectl --user status mine
check "user's list" has "^mine .*running" "$(as gvmspawn list)"
check "user's poweroff" as machinectl --user poweroff mine
check "user's end" soon as test ! -e /run/user/4711/systemd/vmspawn/mine
( cd /home/tester; as gvmspawn ${run#./gvmspawn} -M scoped --register=yes --slice=bar --property=MemoryMax=300M </dev/null >/g/scoped 2>&1; echo "status $?" >>/g/scoped ) &
check "user's scope" soon bash -c 'XDG_RUNTIME_DIR=/run/user/4711 runuser -u tester -- systemctl --user show -p Slice,MemoryMax machine-scoped.scope | grep -z "Slice=bar.slice.*MemoryMax=314572800"'
check "user's stop" soon as gvmspawn stop scoped
wait
check "user's status" has "status 0" "$(cat scoped)"

check "no bus, no matter" has "status 0" "$(env -u DBUS_SYSTEM_BUS_ADDRESS DBUS_SYSTEM_BUS_ADDRESS=unix:path=/nonexistent bash -c "echo q | $run -M nobus --console=interactive --register=auto; echo status \$?" 2>&1)"
check "nothing is left" [ -z "$(ls /run/systemd/vmspawn)" ]
check "journal-remote" ./journal.test
`

// TestLongSystemdHost registers machines with a real systemd-machined and has
// machinectl, systemd and another user control them: acceptance 13 of
// vmspawn.md, and the shape of systemd's own TEST-87-AUX-UTILS-VM.vmspawn.
func TestLongSystemdHost(t *testing.T) {
	onLongHost(t)
	dir := t.TempDir()
	tinyCommand(t, dir)
	onHost(t, dir, machinedJob)
}

// TestLongServiceManager: sd_notify, watchdog, the template units of system
// and user, TAP with systemd-networkd (acceptance 5 and 13), and
// systemd-journal-remote (11).
func TestLongServiceManager(t *testing.T) {
	onLongHost(t)
	dir := t.TempDir()
	tinyCommand(t, dir)
	tinyDisk(t, dir)
	build := exec.Command("go", "test", "-c", "-o", filepath.Join(dir, "journal.test"), "./internal/journal")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	copyDist(t, dir)
	onHost(t, dir, managerJob)
}

// copyDist copies the files that come with the program.
func copyDist(t *testing.T, dir string) {
	t.Helper()
	if err := os.CopyFS(dir, os.DirFS("../../dist")); err != nil {
		t.Fatal(err)
	}
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
