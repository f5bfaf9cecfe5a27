package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/arg"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/logging"
)

// firstListenFD is the first descriptor of sd_listen_fds(3).
const firstListenFD = 3

// maxListenFDs bounds how many descriptors we look at.
const maxListenFDs = 1024

// passed are descriptors that a service manager passed to us, by name.
type passed struct {
	name string
	file *os.File
}

// listenFDs takes the descriptors that $LISTEN_FDS announces, and the
// announcement out of the environment.
func listenFDs() []passed {
	pid, count, names := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_FDNAMES")
	for _, v := range []string{"LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		os.Unsetenv(v)
	}
	n, err := strconv.Atoi(count)
	if err != nil || pid != strconv.Itoa(os.Getpid()) {
		return nil
	}
	words := strings.Split(names, ":")
	var fds []passed
	for i := range min(n, maxListenFDs) {
		fd := firstListenFD + i
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
			continue
		}
		name := "unknown"
		if i < len(words) && words[i] != "" {
			name = words[i]
		}
		fds = append(fds, passed{name, os.NewFile(uintptr(fd), name)})
	}
	return fds
}

// usePassed uses "kvm" and "vhost-vsock", and closes what we have no use for.
func (p *plan) usePassed(fds []passed, log *slog.Logger) {
	for _, fd := range fds {
		switch {
		case fd.name == "kvm" && p.s.kvm == arg.No:
			log.Warn("A descriptor of /dev/kvm was passed, but --kvm=no is given, closing it.")
		case fd.name == "kvm" && p.kvm == nil:
			p.kvm = fd.file
			p.files = append(p.files, fd.file)
			continue
		case fd.name == "vhost-vsock" && p.s.vsock == arg.No:
			log.Warn("A descriptor of /dev/vhost-vsock was passed, but --vsock=no is given, closing it.")
		case fd.name == "vhost-vsock" && p.vhostVsock == nil:
			p.vhostVsock = fd.file
			p.files = append(p.files, fd.file)
			continue
		default:
			log.Log(context.Background(), logging.LevelNotice, fmt.Sprintf("Descriptor %d was passed under the unexpected name '%s', closing it.", fd.file.Fd(), arg.Printable(fd.name)))
		}
		fd.file.Close()
	}
}
