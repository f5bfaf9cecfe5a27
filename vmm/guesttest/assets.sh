#!/usr/bin/env bash
# Fetches what the tests boot, as Debian packages by name, into a cache
# outside the repository, and prints the path of each thing asked for.
#
#   assets.sh NAME...
#
# Names:
#   kernel-bookworm, kernel-trixie, kernel-sid      linux-image-cloud-amd64, unpacked
#   kernel-bookworm-generic, kernel-trixie-generic  linux-image-amd64, unpacked
#   kernel-krun                                     libkrunfw5, unpacked: a kernel without PCI, inside a library
#   busybox                                         a static busybox
#   fio                                             fio and busybox with what they need, unpacked (needs root)
#   iperf3                                          iperf3 with what it needs, unpacked (needs root)
#   ovmf                                            OVMF firmware, unpacked
#   shim-signed, grub-signed                        the boot loaders that Microsoft and Debian signed
#   syslinux                                        a boot loader for a BIOS, unpacked
#   ovmf-trixie                                     the same of Debian 13
#   systemd-boot                                    systemd's EFI programs, unpacked
#   tree-trixie, tree-sid                           a Debian tree with systemd (needs root)
#   tree-bookworm                                   the same with kernel and initrd (needs root)
#   tree-trixie-tpm                                 the same with what uses a TPM (needs root)
#   tree-trixie-build                               the same with gcc, make, openssl, stress-ng and, in
#                                                   /usr/src/lua, a C program's source (needs root)
#   host-vmspawn                                    a host with machined and all, and systemd-vmspawn with
#                                                   its QEMU, for systemd-nspawn (needs root)
#
# Everything but the tree is only unpacked and needs no root. A thing that is
# there already costs nothing. Concurrent calls wait for each other.
#
# The cache is $GVMSPAWN_CACHE, else ~/.cache/gvmspawn. The package mirror is
# the one that apt uses on this machine.
set -euo pipefail
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

cache=${GVMSPAWN_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/gvmspawn}
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9

say() { echo "assets: $*" >&2; }
die() { say "$*"; exit 1; }

# mirror prints the URI of the Debian archive that apt is set up with.
mirror() {
	apt-get indextargets --format '$(SITE) $(REPO_URI)' 'Created-By: Packages' |
		awk '{print $NF}' | grep -E '/debian/?$' | head -n 1
}

# suite sets up a private apt state for a suite and prints its directory.
suite() {
	local s=$1 dir="$cache/apt/$1"
	if [ ! -e "$dir/ready" ]; then
		local uri
		uri=$(mirror)
		[ -n "$uri" ] || die "apt is not set up with a Debian mirror: run apt-get update first"
		mkdir -p "$dir"/{state/lists/partial,cache/archives/partial,etc/preferences.d,etc/apt.conf.d}
		cp -r /etc/apt/apt.conf.d/. "$dir/etc/apt.conf.d/"
		[ ! -d /etc/apt/auth.conf.d ] || cp -r /etc/apt/auth.conf.d "$dir/etc/" 2>/dev/null || true
		touch "$dir/state/status"
		cat >"$dir/etc/sources.list" <<-END
			deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri $s main
		END
		say "reading the package lists of $s"
		apt_in "$dir" -qq update >&2
		touch "$dir/ready"
	fi
	echo "$dir"
}

# apt_in DIR ARGS runs apt-get on the private state.
apt_in() {
	local dir=$1
	shift
	apt-get -o Dir="$dir" -o Dir::Etc="$dir/etc" -o Dir::State="$dir/state" -o Dir::Cache="$dir/cache" \
		-o Dir::State::status="$dir/state/status" -o APT::Sandbox::User="$(id -un)" -o Debug::NoLocking=1 "$@"
}

# unpack SUITE PACKAGE INTO fetches one package and unpacks it.
unpack() {
	local dir tmp
	dir=$(suite "$1")
	tmp=$(mktemp -d "$cache/tmp.XXXXXX")
	say "fetching $2 ($1)"
	# A second try with fresh lists: the archive may have moved on.
	(cd "$tmp" && apt_in "$dir" -qq download "$2" >&2) ||
		(apt_in "$dir" -qq update >&2 && cd "$tmp" && apt_in "$dir" -qq download "$2" >&2) ||
		{ rm -rf "$tmp"; die "cannot fetch package $2 of $1"; }
	mkdir -p "$3"
	dpkg-deb -x "$tmp"/*.deb "$3"
	rm -rf "$tmp"
}

# unpack_all SUITE PACKAGES INTO unpacks several packages into one place.
unpack_all() {
	local p
	for p in $2; do unpack "$1" "$p" "$3"; done
}

# dependencies SUITE PACKAGE prints what PACKAGE depends on, one name a line.
dependencies() {
	local dir
	dir=$(suite "$1")
	apt-cache -o Dir="$dir" -o Dir::Etc="$dir/etc" -o Dir::State="$dir/state" -o Dir::Cache="$dir/cache" \
		-o Dir::State::status="$dir/state/status" show "$2" |
		awk -v RS= 'NR == 1' | sed -n 's/^Depends: //p' | tr ',' '\n' | awk '{print $1}'
}

# kernel SUITE META INTO unpacks the kernel that a metapackage names, makes
# INTO/vmlinuz and the modules' dependency lists.
kernel() {
	local pkg part
	pkg=$(dependencies "$1" "$2" | grep -m 1 '^linux-image-[0-9]')
	[ -n "$pkg" ] || die "no kernel package behind $2 of $1"
	unpack "$1" "$pkg" "$3"
	# From Debian 14 on, the package only names those with the kernel, its
	# modules, and the lists of them.
	for part in $(dependencies "$1" "$pkg" | grep -E '^linux-(binary|modules|base)-[0-9]'); do
		unpack "$1" "$part" "$3"
	done
	ln -sf "$(cd "$3" && ls -d boot/vmlinuz-* usr/lib/modules/*/vmlinuz 2>/dev/null | head -n 1)" "$3/vmlinuz"
	local mods="$3/lib/modules"
	[ -d "$mods" ] || mods="$3/usr/lib/modules"
	mkdir -p "$3/lib"
	[ -e "$3/lib/modules" ] || ln -s ../usr/lib/modules "$3/lib/modules"
	if command -v depmod >/dev/null; then :; else
		die "depmod is missing: install the package kmod"
	fi
	depmod -b "$3" "$(ls "$mods")"
}

# tree SUITE PACKAGES INTO makes the Debian tree of the main job, with more packages (",a,b").
tree() {
	local suite=$1 more=$2
	shift 2
	[ "$(id -u)" = 0 ] || die "the Debian tree needs root (mmdebstrap)"
	command -v mmdebstrap >/dev/null || die "mmdebstrap is missing: install the package mmdebstrap"
	say "making a Debian tree with systemd ($suite)"
	mmdebstrap --quiet --variant=minbase --aptopt='Acquire::Check-Valid-Until "false"' \
		"--include=systemd,systemd-sysv,udev,kmod,iproute2,dbus,openssh-server$more" \
		"$suite" "$1" "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(mirror) $suite main" >&2
	# No password for root on the console: the tree is for tests.
	sed -i 's|^root:[^:]*:|root::|' "$1/etc/shadow"
	echo gvmspawn-test >"$1/etc/hostname"
	rm -f "$1/etc/resolv.conf" "$1"/var/cache/apt/archives/*.deb
}

# upstream SUITE PACKAGE INTO unpacks the upstream source of a package.
upstream() {
	local dir tmp
	dir=$(suite "$1")
	tmp=$(mktemp -d "$cache/tmp.XXXXXX")
	say "fetching the source of $2 ($1)"
	# The lists of sources are read for this one package only, beside the others.
	cp -r "$dir" "$tmp/apt"
	sed -i 's/^deb /deb-src /' "$tmp/apt/etc/sources.list"
	(mkdir "$tmp/got" && cd "$tmp/got" && apt_in "$tmp/apt" -qq update >&2 && apt_in "$tmp/apt" -qq source --download-only "$2" >&2) ||
		{ rm -rf "$tmp"; die "cannot fetch the source of $2 of $1"; }
	mkdir -p "$3"
	tar -x --strip-components=1 -C "$3" -f "$tmp"/got/*.orig.tar.*
	rm -rf "$tmp"
}

# build INTO makes the Debian tree with compilers and a program to compile.
build() {
	tree trixie ,gcc,libc6-dev,make,openssl,stress-ng "$1"
	upstream trixie lua5.4 "$1/usr/src/lua"
}

# host INTO makes a systemd host of the newest version that Debian has.
host() {
	[ "$(id -u)" = 0 ] || die "the systemd host needs root (mmdebstrap)"
	command -v mmdebstrap >/dev/null || die "mmdebstrap is missing: install the package mmdebstrap"
	say "making a host with the newest systemd"
	mmdebstrap --quiet --variant=minbase --aptopt='Acquire::Check-Valid-Until "false"' \
		--include=mount,util-linux,systemd,systemd-sysv,systemd-container,dbus,dbus-user-session,udev,systemd-journal-remote,polkitd,procps,openssh-client,libnss-systemd,iproute2,qemu-system-x86,qemu-utils,virtiofsd \
		sid "$1" "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(mirror) sid main" >&2
	rm -f "$1"/var/cache/apt/archives/*.deb
}

# program INTO PACKAGES unpacks programs with all that they need to run.
program() {
	[ "$(id -u)" = 0 ] || die "the tree with $2 needs root (mmdebstrap)"
	command -v mmdebstrap >/dev/null || die "mmdebstrap is missing: install the package mmdebstrap"
	say "unpacking $2"
	mmdebstrap --quiet --variant=extract --include="base-files,libc6,$2" \
		trixie "$1" "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(mirror) trixie main" >&2
	rm -rf "$1"/var/cache/apt/archives/*.deb "$1"/usr/share/{doc,man,locale}
}

fio() { program "$1" busybox-static,fio; }
iperf3() { program "$1" iperf3; }

# make NAME MAKER ARGS makes $cache/NAME in one step, unless it is there.
make() {
	local name=$1 work="$cache/$1.part"
	shift
	if [ ! -e "$cache/$name/.complete" ]; then
		rm -rf "$work" "${cache:?}/$name"
		"$@" "$work"
		touch "$work/.complete"
		mv "$work" "$cache/$name"
	fi
	echo "$cache/$name"
}

[ $# -gt 0 ] || die "usage: assets.sh NAME..."
for name; do
	case $name in
	kernel-bookworm) make "$name" kernel bookworm linux-image-cloud-amd64 ;;
	kernel-trixie) make "$name" kernel trixie linux-image-cloud-amd64 ;;
	kernel-sid) make "$name" kernel sid linux-image-cloud-amd64 ;;
	kernel-bookworm-generic) make "$name" kernel bookworm linux-image-amd64 ;;
	kernel-trixie-generic) make "$name" kernel trixie linux-image-amd64 ;;
	kernel-krun) make "$name" unpack sid libkrunfw5 ;;
	fio | iperf3) make "$name" "$name" ;;
	busybox) make "$name" unpack bookworm busybox-static ;;
	ovmf) make "$name" unpack bookworm ovmf ;;
	shim-signed) make "$name" unpack bookworm shim-signed ;;
	grub-signed) make "$name" unpack bookworm grub-efi-amd64-signed ;;
	syslinux) make "$name" unpack_all bookworm "syslinux syslinux-common" ;;
	ovmf-trixie) make "$name" unpack trixie ovmf ;;
	systemd-boot) make "$name" unpack trixie systemd-boot-efi ;;
	tree-trixie) make "$name" tree trixie "" ;;
	tree-trixie-tpm) make "$name" tree trixie ,systemd-cryptsetup,cryptsetup-bin,tpm2-tools,libtss2-tcti-device0t64 ;;
	tree-trixie-build) make "$name" build ;;
	tree-bookworm) make "$name" tree bookworm ,linux-image-cloud-amd64,initramfs-tools ;;
	tree-sid) make "$name" tree sid ,libnss-systemd,libpam-systemd,systemd-userdbd ;;
	host-vmspawn) make "$name" host ;;
	*) die "unknown asset $name" ;;
	esac
done
