package initrd

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"
	"golang.org/x/sys/unix"
)

// Credential is a system credential of the guest, in a file of its name.
// systemd in the guest finds them as it finds those of a container: by the
// directory that $CREDENTIALS_DIRECTORY names (systemd.exec(5)).
type Credential struct {
	// ID is the name, valid as a file name.
	ID   string
	Data []byte
}

// Paths of the handover. The directory in the archive has a name that no
// initial RAM disk of a distribution uses.
const (
	ours           = "/.gvmspawn"
	credentialsDir = ours + "/credentials/"
	// HandoverInit is the program of [Handover], for the kernel parameter rdinit=.
	HandoverInit = ours + "/init"
)

// Where the guest has its credentials: in a /run that systemd takes over.
const (
	systemCredentials  = "/run/credentials/@system"
	credentialVariable = "CREDENTIALS_DIRECTORY=" + systemCredentials
	// runOptions are systemd's own of /run (TMPFS_LIMITS_RUN).
	runOptions = "mode=0755,size=20%,nr_inodes=800k"
)

// credentialRecords are the files of the archive.
func credentialRecords(creds []Credential) []cpio.Record {
	if len(creds) == 0 {
		return nil
	}
	records := []cpio.Record{cpio.Directory(strings.TrimPrefix(ours, "/"), 0o700), cpio.Directory(strings.Trim(credentialsDir, "/"), 0o700)}
	for _, c := range creds {
		r := cpio.StaticFile(strings.TrimPrefix(credentialsDir, "/")+c.ID, "", 0o400)
		r.FileSize = uint64(len(c.Data))
		r.ReaderAt = bytes.NewReader(c.Data)
		records = append(records, r)
	}
	return records
}

// handOver puts the credentials into a new /run below root, and their
// directory into the environment of what the program executes.
func handOver(p *Program, root string, creds []Credential) {
	if len(creds) == 0 {
		return
	}
	bad := fail(p, "cannot hand over the credentials")
	dir := root
	for _, name := range []string{"run", "credentials", "@system"} {
		dir += "/" + name
		p.Syscall(unix.SYS_MKDIR, p.String(dir), Int(0o755))
		p.OnError(bad, unix.EEXIST)
		if name == "run" {
			p.Syscall(unix.SYS_MOUNT, p.String("tmpfs"), p.String(dir), p.String("tmpfs"), Int(unix.MS_NOSUID|unix.MS_NODEV|unix.MS_STRICTATIME), p.String(runOptions))
			p.OnError(bad)
		}
	}
	// A ramfs is never swapped out, as systemd has its own.
	p.Syscall(unix.SYS_MOUNT, p.String("ramfs"), p.String(dir), p.String("ramfs"), Int(unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC), p.String("mode=0700"))
	p.OnError(bad)
	for _, c := range creds {
		copyFile(p, credentialsDir+c.ID, dir+"/"+c.ID, len(c.Data), bad)
	}
	p.Setenv(credentialVariable)
}

// copyFile copies a file of size bytes.
func copyFile(p *Program, from, to string, size int, bad func()) {
	p.Syscall(unix.SYS_OPEN, p.String(to), Int(unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC), Int(0o400))
	p.OnError(bad)
	p.Keep()
	p.Syscall(unix.SYS_OPEN, p.String(from), Int(unix.O_RDONLY|unix.O_CLOEXEC))
	p.OnError(bad)
	p.KeepOther()
	if size > 0 {
		p.Syscall(unix.SYS_SENDFILE, p.Kept(), p.OtherKept(), Int(0), Int(size))
		p.OnError(bad)
		p.Unless(size, bad)
	}
	p.Syscall(unix.SYS_CLOSE, p.Kept())
	p.Syscall(unix.SYS_CLOSE, p.OtherKept())
}

// handoverProgram hands the credentials over and executes init, to which it
// leaves everything else; messages go to the console.
func handoverProgram(creds []Credential, init string) []byte {
	p := NewProgram()
	handOver(p, "", creds)
	p.Exec(init)
	p.OnError(fail(p, "cannot execute "+init+" of the initrd"))
	return p.ELF()
}

// The initial RAM disk of initramfs-tools covers our /run with its own, and
// runs scripts: one of conf/conf.d early, one of scripts/ later
// (initramfs-tools(7), "Boot scripts"; its init reads conf/conf.d/*). Others
// ignore these files.
const (
	hookBoot   = "gvmspawn"
	hookConfig = "gvmspawn_boot=${BOOT:-local}\nBOOT=" + hookBoot + "\n"
	hookScript = `. "/scripts/${gvmspawn_boot}"
mkdir -p /run/credentials
mkdir -m 0700 ` + systemCredentials + `
mount -t ramfs -o nosuid,nodev,noexec,mode=0700 ramfs ` + systemCredentials + ` || :
for gvmspawn_file in ` + credentialsDir + `*; do
	gvmspawn_to="` + systemCredentials + `/${gvmspawn_file##*/}"
	(umask 0277; cat "${gvmspawn_file}" >"${gvmspawn_to}")
done
`
)

// Handover makes an archive to be appended to an initial RAM disk that is not
// ours, with a program that gives the guest its credentials, executes the
// other's first program, and is to be started by rdinit=[HandoverInit]. The
// command line is asked for an rdinit= of the user's.
func Handover(creds []Credential, commandLine string) (*Image, error) {
	init := initPath
	if path := parameter(commandLine, "rdinit"); path != "" {
		init = path
	}
	records := append(credentialRecords(creds),
		cpio.StaticFile(strings.TrimPrefix(HandoverInit, "/"), string(handoverProgram(creds, init)), 0o700),
		cpio.Directory("dev", 0o755), cpio.Directory("run", 0o755),
		cpio.Directory("conf", 0o755), cpio.Directory("conf/conf.d", 0o755), cpio.Directory("scripts", 0o755),
		cpio.StaticFile("conf/conf.d/"+hookBoot, hookConfig, 0o644),
		cpio.StaticFile("scripts/"+hookBoot, hookScript, 0o644))
	out, err := pack(records)
	if err != nil {
		return nil, err
	}
	return &Image{Reader: bytes.NewReader(out)}, nil
}

// pack writes an archive.
func pack(records []cpio.Record) ([]byte, error) {
	size := 4096
	for _, r := range records {
		size += int(r.FileSize) + 256
	}
	out := bytes.NewBuffer(make([]byte, 0, size))
	w := cpio.Newc.Writer(out)
	err := cpio.WriteRecords(w, records)
	if err == nil {
		err = cpio.WriteTrailer(w)
	}
	if err != nil {
		return nil, fmt.Errorf("build the initrd: %w", err)
	}
	return out.Bytes(), nil
}
