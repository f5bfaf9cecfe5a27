package main

import (
	"path/filepath"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// guestJob boots a guest with systemd of the host's version, as a service.
const guestJob = `
vm="./gvmspawn -D guest --linux=/kernel/vmlinuz --kvm=no --cpus=2 --ram=1G --console=read-only"
useradd -m -u 4712 -s /bin/bash bob
echo hello >/home/bob/file; chown bob:bob /home/bob/file
install -d /etc/ssh/ssh_config.d; cp ssh/20-gvmspawn.conf /etc/ssh/ssh_config.d/10-gvmspawn.conf; cp gvmspawn /usr/local/bin/
ip link set lo up

check "ready service" systemd-run -q --unit=deb --service-type=notify -p TimeoutStartSec=600 -p WorkingDirectory=/g --setenv=HOME=/root \
	$vm -M deb --register=yes --bind-user=bob --bind-user-shell=yes --forward-journal=/g/journal --forward-journal-max-use=64M quiet
check "guest's STATUS=" soon bash -c 'systemctl show deb -p StatusText | grep "VM running"'
inside() { ./gvmspawn ssh deb "$@"; }
check running has "running" "$(inside systemctl is-system-running --wait)"
check "bind-user's name" has "^60514 /run/vmhost/home/bob /bin/bash" "$(inside 'getent passwd bob | { IFS=: read n p u g c h s; echo $u $h $s; }')"
check "bind-user's files" has "^hello bob bob" "$(inside 'echo $(cat /run/vmhost/home/bob/file) $(stat -c "%U %G" /run/vmhost/home/bob/file)')"
inside 'runuser -u bob -- touch /run/vmhost/home/bob/new'
check "bind-user writes" has "^bob bob" "$(stat -c '%U %G' /home/bob/new)"
key=$(./gvmspawn status deb | sed -n 's/ *ssh key: //p')
check "key of root only" has "^600 root" "$(stat -c '%a %U' $key)"
check "ssh machine/NAME" has "over machine" "$(ssh -i $key root@machine/deb echo over machine 2>&1)"
check "ssh vsock-mux by systemd-ssh-proxy" has "over mux" "$(ssh -F none -o ProxyCommand='/usr/lib/systemd/systemd-ssh-proxy %h %p' -o ProxyUseFdpass=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
	-i $key root@vsock-mux/run/systemd/vmspawn/deb/vsock echo over mux 2>&1)"
check "ssh gvmspawn/NAME" has "over connect" "$(ssh -i $key root@gvmspawn/deb echo over connect 2>&1)"
inside systemctl exit 42
check "end" soon bash -c 'systemctl show deb -p ActiveState | grep -E "failed|inactive"'
check "status 42" has "Result=exit-code
ExecMainStatus=42" "$(systemctl show deb -p Result,ExecMainStatus)"
check "the guest's journal in a directory" has "Reached target" "$(journalctl --directory=journal -o cat --no-pager)"
check "key gone" [ ! -e $key ]

# TEST-94-COCO's shape: credentials make units, and the guest's status is ours.
# At the same time: the journal in a file, and 1 MiB of credentials.
head -c 900000 /dev/urandom >big
$vm -M exit123 --ephemeral --register=no --forward-journal=/g/guest.journal --load-credential=big:/g/big \
	--set-credential='systemd.extra-unit.test94.service:[Unit]\nSuccessAction=exit\nSuccessActionExitStatus=123\nAfter=multi-user.target\n[Service]\nType=oneshot\nImportCredential=big\nExecStart=sh -c "sha256sum $CREDENTIALS_DIRECTORY/big | cut -d \\" \\" -f 1 >/dev/console"\n' \
	--set-credential='systemd.unit-dropin.multi-user.target:[Unit]\nWants=test94.service\n' quiet </dev/null >exit123.out 2>&1
check "status 123" [ $? = 123 ]
check "a big credential" has "$(sha256sum big | cut -d ' ' -f 1)" "$(cat exit123.out)"
check "the guest's journal in a file" has "Reached target" "$(journalctl --file=guest.journal -o cat --no-pager)"
check "nothing is left" [ -z "$(ls /run/systemd/vmspawn)" ]

# Without systemd-journal-remote: the export format, which it reads later.
mv /usr/lib/systemd/systemd-journal-remote /root/
$vm -M export --ephemeral --register=no --forward-journal=/g/export.journal --set-credential='systemd.extra-unit.end.service:[Unit]\nAfter=multi-user.target\n[Service]\nType=oneshot\nExecStart=systemctl poweroff\n' \
	--set-credential='systemd.unit-dropin.multi-user.target:[Unit]\nWants=end.service\n' quiet </dev/null >export.out 2>&1
check "status 0" [ $? = 0 ]
check "says that it is missing" has "systemd-journal-remote is not installed" "$(cat export.out)"
/root/systemd-journal-remote --output=/g/converted.journal --split-mode=none export.export
check "the export format" has "Reached target" "$(journalctl --file=converted.journal -o cat --no-pager)"
`

// TestLongGuestOnHost boots Debian with the newest systemd on a host with the
// newest systemd: readiness, exit status, users, ssh, journal: acceptance 4,
// 5, 10 and 11 of vmspawn.md, and the shape of systemd's TEST-94-COCO.
func TestLongGuestOnHost(t *testing.T) {
	onLongHost(t)
	dir := t.TempDir()
	tree, kernel := guesttest.Asset(t, "tree-sid"), guesttest.KernelAsset(t, "kernel-trixie")
	if err := guesttest.CopyTree(tree, filepath.Join(dir, "guest")); err != nil {
		t.Fatal(err)
	}
	copyDist(t, dir)
	onHost(t, dir, guestJob, "--bind-ro="+kernel.Dir+":/kernel")
}
