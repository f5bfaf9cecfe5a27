package main

import (
	"fmt"
	"io"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/getopt"
)

// docs are the manual's paragraphs about options that one phrase does not
// explain, by long name.
var docs = map[string]string{
	"directory": `The directory is shared with the guest by virtio-fs under the tag "root" and is its root file system. The kernel
		is given by --linux= or found in the directory: by the Boot Loader Specification in its efi/ and boot/, else the newest in usr/lib/modules/ or boot/.`,
	"image": `Without root= or mount.usr= among the kernel arguments the image must have a GUID partition table with a root or usr partition
		of the Discoverable Partitions Specification.`,
	"machine": `Without --directory= and --image= the machine's image is looked up: NAME, NAME.raw, NAME.v/ or NAME.raw.v/ in /etc/machines, /run/machines,
		/var/lib/machines, /var/lib/container, /usr/local/lib/machines and /usr/lib/machines, for users also in their own directories. The default is the name of the image.`,
	"private-users": `The default with --directory= is the range that the owner of the directory begins.`,
	"cpus":          `QEMU's form is understood: what of sockets, cores and threads is not given follows from the rest, with cores first.`,
	"image-disk-type": `With pmem, which is not systemd-vmspawn's, a raw image is persistent memory that the guest maps, /dev/pmem0: with rootflags=dax a file system
		that can do it (ext4, XFS) needs no page cache of its own. Changes of a read-only or ephemeral image stay in memory.`,
	"disk-backing": `Whoever made an image can name any file of this host as its backing file, which the guest reads then. With beside, the default, only those in the image's
		directory or below it are taken, and no link leads out of it; with anywhere all.`,
	"ram": `Sizes are rounded up to whole MiB. With a maximum the machine has a virtio memory device, by which "gvmspawn memory" gives the guest more; it has as
		many slots as it needs, whatever the number. The guest takes it as movable memory unless a kernel argument memhp_default_state= says otherwise.`,
	"kvm": `With auto, KVM is used where it works and can run an unmodified kernel; else the software CPU is used and a message says why. With yes,
		an unusable KVM is an error.`,
	"vsock": `With KVM and /dev/vhost-vsock, opened or passed as the descriptor "vhost-vsock", the guest is reached by AF_VSOCK, too. Else the device lives in this
		program and needs nothing of the host, so that yes and auto are the same. Without it there is no readiness, no exit status and no SSH.`,
	"vsock-cid": `The default is derived from the machine's name; with /dev/vhost-vsock the next one is taken if another machine has it, but one that is given
		must be free.`,
	"network-user-mode": `The guest has the address 10.0.2.15, or one of fd67:766d::/64, and reaches what this host reaches. It is told of no boot server: firmware boots from
		the network (PXE, HTTP) only with --network-tap, by the DHCP server of that network.`,
	"network-tap": `The interface is called vt-NAME and is configured by systemd-networkd on hosts that use it. The guest's card has the
		interface's MTU of the time when the guest's driver starts. It needs privileges.`,
	"port":   `May be given several times. The address is 127.0.0.1 unless one is given, the guest's port is the host's unless one is given.`,
	"linux":  `Of a unified kernel image the kernel, initrds, microcode and command line are used, and those of add-ons beside it.`,
	"initrd": `Several are concatenated. Without any, one that mounts the root file system is made where the kernel needs it.`,
	"firmware": `With auto, the default, kernels are booted directly, and firmware starts only disk images in which no kernel was found, or where another option asks
		for it. With uefi, firmware is chosen by QEMU's descriptors in $XDG_CONFIG_HOME/qemu/firmware, /etc/qemu/firmware and /usr/share/qemu/firmware. A path, absolute or
		beginning with "./", is a descriptor, or an image named *.fd or *.bin. The kernel, if one is given or found in the directory, is then started by the firmware; it must have an
		EFI stub. A directory without a kernel is started by its own EFI/BOOT/BOOTX64.EFI. Firmware that needs System Management Mode, as that with Secure Boot does, is taken if
		nothing else fits; where the host's KVM has none, it runs on the software CPU. With bios, SeaBIOS of /usr/share/seabios or /usr/share/qemu starts a disk image by its boot sector.
		A descriptor that is named must have the features that are required.
		With list the descriptors of this host are listed, with describe that which would be used is printed.`,
	"firmware-features": `Later lists add to earlier ones; an empty one forgets them, and the default, ~enrolled-keys, too.`,
	"efi-nvram-state": `The default, auto, is a file beside the image with the suffix ".efinvramstate", which is made from the firmware's template. It is off for ephemeral machines:
		then variables are forgotten at the end. "gvmspawn firmware vars" shows what is in such a file.`,
	"bind": `Backslashes make the next character literal, so that paths with colons are possible. The guest needs systemd 254 or newer to mount them,
		which gets them by the credential fstab.extra.`,
	"bind-ro":      `That it is read-only is enforced on the host.`,
	"notify-ready": `The guest reports by the credential vmm.notify_socket, which systemd understands.`,
	"console": `Interactive connects the terminal, or pipes; the machine outlives the end of its input. Read-only shows only output and leaves the terminal
		as it is. Native adds a monitor on Ctrl-a c, and Ctrl-a x to quit. Headless machines have no console device at all.`,
	"set-credential":  `See systemd.system-credentials(7) for what systemd does with them. All together may have 1 MiB.`,
	"load-credential": `A relative PATH names a credential that this program was given itself, in $CREDENTIALS_DIRECTORY.`,
	"register":        `With auto nothing waits for systemd-machined, and where there is none nothing is said.`,
	"virtio-transport": `With mmio there is no PCI, for kernels of microVMs: devices are found by ACPI or, by kernels without it, by arguments virtio_mmio.device=
		that are put before all others, and CPUs by MP tables. It has room for 14 devices. systemd in the guest loads no driver early: it looks for PCI.`,
	"stop-timeout": `Powering off begins with SIGTERM, SIGINT, SIGRTMIN+4 or "gvmspawn stop".`,
	"pass-ssh-key": `The key lives in the machine's runtime directory and is used by "gvmspawn ssh".`,
}

// manual is the table with what only the manual page says.
func (s *settings) manual() getopt.Table {
	t := s.table()
	for g := range t {
		for i := range t[g].Options {
			t[g].Options[i].Doc = docs[t[g].Options[i].Long]
		}
	}
	return t
}

const manHead = `.\" Made by "gvmspawn man", do not edit.
.TH GVMSPAWN 1 "" "gvmspawn" "User Commands"
.SH NAME
gvmspawn \- boot a directory or a disk image as a virtual machine
.SH SYNOPSIS
.B gvmspawn
[\fIOPTIONS\fR...] [\fIKERNEL ARGUMENTS\fR...]
`

const manDescription = `.SH DESCRIPTION
gvmspawn is a virtual machine monitor in one program: it needs neither QEMU nor helpers, and no firmware to boot a kernel.
Its command line is that of \fBsystemd\-vmspawn\fR(1), so that it can take that program's place;
options of its own are marked. The first argument that is no option, and all after it, are appended to
the kernel command line. A kernel argument that is the name of a command below has to follow an option or "\-\-".
.PP
In front of them the kernel gets console=, panic=\-1, so that it does not stand still after a panic, and cryptomgr.notests,
so that it does not test its cryptographic algorithms at boot; of the same argument given twice the last one counts
(cryptomgr.notests=0).
.PP
The guest's console is this terminal. Pressing ^] (control and the closing bracket) three times within a second kills the machine.
.SH COMMANDS
`

const manTail = `.SH SIGNALS
\fBSIGTERM\fR, \fBSIGINT\fR and \fBSIGRTMIN+4\fR press the machine's power button. A second one kills it, and so does
the end of \fB\-\-stop\-timeout=\fR. \fBSIGHUP\fR, a terminal that goes away and a closed output do the same as SIGTERM;
the end of the input does nothing.
.SH EXIT STATUS
The status that the guest reported (\fBsystemctl exit\fR \fIN\fR), else 0. After an error, a crash of the guest
or a failure of the machine it is 1, and a message says why.
.SH ENVIRONMENT
.TP
\fB$SYSTEMD_LOG_LEVEL\fR, \fB$SYSTEMD_LOG_TARGET\fR, \fB$SYSTEMD_LOG_COLOR\fR, \fB$SYSTEMD_LOG_LOCATION\fR, \fB$SYSTEMD_LOG_TID\fR, \fB$SYSTEMD_LOG_TIME\fR
How messages are logged: emerg, alert, crit, err, warning, notice, info or debug;
to console, console\-prefixed, kmsg, journal, journal\-or\-kmsg, auto or null.
.TP
\fB$SYSTEMD_PAGER\fR, \fB$PAGER\fR, \fB$SYSTEMD_LESS\fR, \fB$SYSTEMD_COLORS\fR, \fB$NO_COLOR\fR
The pager of \fB\-\-help\fR, and colours.
.TP
\fB$SYSTEMD_VMSPAWN_NETWORK_MAC\fR
The guest's Ethernet address.
.TP
\fB$GVMSPAWN_TPM\fR
The interface of the TPM: tis, the default, or crb.
.TP
\fB$CREDENTIALS_DIRECTORY\fR, \fB$NOTIFY_SOCKET\fR, \fB$WATCHDOG_USEC\fR, \fB$LISTEN_FDS\fR, \fB$INVOCATION_ID\fR
As for every service of systemd. The guest's generation identifier (VMGENID) is derived from the last. Descriptors called "kvm" and "vhost-vsock" are used as /dev/kvm and /dev/vhost-vsock.
.SH FILES
.TP
\fI/run/systemd/vmspawn/NAME/\fR, \fI$XDG_RUNTIME_DIR/systemd/vmspawn/NAME/\fR, \fI$RUNTIME_DIRECTORY/NAME/\fR
The running machine: its control socket, its vsock socket (write "CONNECT PORT" and a newline), its SSH key. Unless vhost-vsock is used, connections of the guest to port
N of the host, CID 2, go to the socket vsock_N there, if a program has made one.
.TP
\fIIMAGE.tpmstate/\fR
The TPM of an image or directory, unless \fB\-\-tpm\-state=\fR says otherwise.
.SH EXAMPLES
.TP
gvmspawn \-D tree \-\-linux=vmlinuz
Boots a directory.
.TP
gvmspawn \-i disk.raw \-\-network\-user\-mode \-\-port=8080:80 \-x
Boots a disk image with a web server, and throws all changes away.
.TP
gvmspawn ssh tree systemctl status
Runs a command in the first machine.
.SH SEE ALSO
\fBsystemd\-vmspawn\fR(1), \fBmachinectl\fR(1), \fBsystemd.system\-credentials\fR(7)
`

// writeMan writes the manual page.
func writeMan(w io.Writer) {
	io.WriteString(w, manHead+manDescription) //nolint:errcheck // the caller checks the last write
	for _, v := range verbs() {
		fmt.Fprintf(w, ".TP\n\\fBgvmspawn %s\\fR %s\n%s.\n", v.name, v.arguments, v.help)
	}
	io.WriteString(w, ".SH OPTIONS\n") //nolint:errcheck // the same
	newSettings().manual().WriteMan(w)
	io.WriteString(w, manTail) //nolint:errcheck // the same
}

// man prints the manual page.
func (c *command) man([]string) (int, error) {
	writeMan(c.stdout)
	return 0, nil
}

// completion prints a completion script.
func (c *command) completion(args []string) (int, error) {
	var known []getopt.Verb
	for _, v := range verbs() {
		known = append(known, getopt.Verb{Name: v.name, Arguments: v.arguments, Help: v.help, Machines: v.machines})
	}
	shell := ""
	if len(args) == 1 {
		shell = args[0]
	}
	t := newSettings().table()
	switch shell {
	case "bash":
		t.WriteBash(c.stdout, "gvmspawn", known)
	case "zsh":
		t.WriteZsh(c.stdout, "gvmspawn", known)
	case "fish":
		t.WriteFish(c.stdout, "gvmspawn", known)
	default:
		return exitFailure, fmt.Errorf("completion needs the name of a shell: bash, zsh or fish")
	}
	return 0, nil
}
