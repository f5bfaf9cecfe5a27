#!/usr/bin/env bash
# make demo: boots a Debian tree, straight from its directory, as a virtual
# machine with a stock Debian kernel, waits until systemd says that the system
# runs, and powers off with the exit status that the guest chose.
set -euo pipefail
cd "$(dirname "$0")/.."

echo "== fetching a Debian kernel and making a Debian tree (once)"
kernel=$(bash vmm/guesttest/assets.sh kernel-trixie)
tree=$(bash vmm/guesttest/assets.sh tree-trixie)

# The unit that the guest runs once it is up. It travels as a credential; the
# tree itself stays as it is.
unit=$(cat <<'END'
[Unit]
Description=Demo
After=multi-user.target
SuccessAction=exit
FailureAction=exit
[Service]
Type=exec
StandardOutput=tty
StandardError=tty
ExecStart=sh -c 'echo; echo "*** Hello from $(hostname), Linux $(uname -r), $(nproc) CPU, root on $(findmnt -no FSTYPE /)"; echo "*** systemctl is-system-running: $(systemctl is-system-running --wait)"; echo'
END
)

echo "== ./gvmspawn -D <Debian tree> --linux <vmlinuz>"
start=$(date +%s.%N)
status=0
./gvmspawn --directory="$tree" --linux="$kernel/vmlinuz" --ram=1G --tpm=no --console=read-only \
	--set-credential="systemd.extra-unit.demo.service:$unit" \
	--set-credential="systemd.unit-dropin.multi-user.target:[Unit]
Wants=demo.service" </dev/null || status=$?
printf '== the machine ended with status %d after %.1f s\n' "$status" "$(echo "$(date +%s.%N) - $start" | bc 2>/dev/null || echo 0)"
exit "$status"
