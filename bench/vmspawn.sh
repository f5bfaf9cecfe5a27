#!/usr/bin/env bash
# Boots the same Debian tree with the same kernel under gvmspawn (software CPU)
# and under systemd-vmspawn (QEMU's TCG and virtiofsd), with the same options and
# once more with --firmware=none, without which the latter takes OVMF for such a
# kernel. One after the other in one container with the newest systemd; prints
# the seconds from the start of the program until the guest has reached
# multi-user.target, and until the program has ended after the guest's power-off,
# and the processor time of all its processes, which a busy machine disturbs
# least.
#
#   bash bench/vmspawn.sh [RUNS]      as root; needs systemd-nspawn
set -euo pipefail
cd "$(dirname "$0")/.."
assets=vmm/guesttest/assets.sh
host=$(bash $assets host-vmspawn) tree=$(bash $assets tree-trixie) kernel=$(bash $assets kernel-trixie)
firmware=$(bash $assets ovmf-trixie)/usr/share
dir=$(mktemp -d "${TMPDIR:-/tmp}/bench-vmspawn.XXXXXX")
trap '[ -z "${nspawn:-}" ] || kill -KILL $nspawn 2>/dev/null; rm -rf "$dir"' EXIT
CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$dir/gvmspawn" ./cmd/gvmspawn
cp "$kernel/vmlinuz" "$dir/vmlinuz"

cat >"$dir/job.sh" <<'END'
#!/bin/bash
exec >/g/result 2>&1
since() { # TIME: the seconds since then
	local us=$((${EPOCHREALTIME/./} - ${1/./}))
	printf '%d.%02d' $((us / 1000000)) $((us / 10000 % 100))
}
cpu() { # hundredths of a second of all processes that have ended and been waited for
	local stat
	read -r stat </proc/$$/stat
	set -- ${stat##*) }
	echo $((${14} + ${15}))
}
done='[Unit]\nAfter=multi-user.target\n[Service]\nType=oneshot\nExecStart=sh -c "echo REACHED-MULTI-USER >/dev/console; systemctl poweroff"\n'
one() { # NAME PROGRAM...
	local name=$1 start ready=- line before
	shift
	rm -rf /g/tree
	cp -a --reflink=auto /tree /g/tree
	before=$(cpu)
	start=$EPOCHREALTIME
	# A terminal, because systemd-vmspawn prints nothing into a pipe.
	while IFS= read -r line; do
		echo "$line" >>"/g/$name.console"
		[[ $line != *REACHED-MULTI-USER* || $ready != - ]] || ready=$(since "$start")
	done < <(timeout 900 script -qefc "$* -D /g/tree --linux=/g/vmlinuz --ram=1G --cpus=2 --register=no --tpm=no --vsock=no --kvm=no \
		--pass-ssh-key=no --console=read-only --set-credential='systemd.extra-unit.done.service:$done' \
		--set-credential='systemd.unit-dropin.multi-user.target:[Unit]\nWants=done.service\n'" /dev/null </dev/null 2>&1)
	line=$(since "$start")
	wait $!
	before=$(($(cpu) - before))
	printf '%s: multi-user %s s, power-off %s s, CPU time %d.%02d s\n' "$name" "$ready" "$line" $((before / 100)) $((before % 100))
}
for ((i = 0; i < RUNS; i++)); do
	one gvmspawn /g/gvmspawn
	one systemd-vmspawn systemd-vmspawn
	one systemd-vmspawn-without-firmware systemd-vmspawn --firmware=none
done
END
chmod +x "$dir/job.sh"

SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 systemd-nspawn --register=no --keep-unit -q -D "$host" --volatile=overlay --private-network \
	--bind="$dir:/g" --bind-ro="$tree:/tree" --bind=/dev/fuse \
	--bind-ro="$firmware/OVMF:/usr/share/OVMF" --bind-ro="$firmware/qemu/firmware:/usr/share/qemu/firmware" --link-journal=no --console=pipe \
	--set-credential="systemd.extra-unit.job.service:[Unit]
After=multi-user.target
[Service]
Type=oneshot
TimeoutStartSec=infinity
Environment=RUNS=${1:-1}
ExecStart=/g/job.sh
ExecStopPost=systemctl poweroff --no-block
" --set-credential='systemd.unit-dropin.multi-user.target:[Unit]
Wants=job.service
' -b </dev/null >"$dir/container.log" 2>&1 &
nspawn=$!
wait $nspawn || { tail "$dir/container.log"; exit 1; }
nspawn=
cat "$dir/result"
[ -z "${KEEP:-}" ] || cp -r "$dir"/*.console "$dir/result" "$KEEP"
