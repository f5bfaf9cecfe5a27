package control

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// action is what polkit is asked for, as for machined's own methods.
const action = "org.freedesktop.machine1.manage-machines"

// authorizeTimeout bounds polkit's answer.
const authorizeTimeout = 10 * time.Second

// peer returns who made a connection.
func peer(c net.Conn) (*unix.Ucred, error) {
	u, isUnix := c.(*net.UnixConn)
	if !isUnix {
		return nil, unix.ENOTSOCK
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if cerr != nil {
		return nil, cerr
	}
	return cred, err
}

// fromOwner allows connections of our own user and of root.
func fromOwner(c net.Conn) bool {
	p, err := peer(c)
	return err == nil && (p.Uid == 0 || int(p.Uid) == os.Geteuid())
}

// authorized allows connections of the owner and, to a machine of the system,
// of those whom polkit lets manage machines.
func authorized(c net.Conn) bool {
	if fromOwner(c) {
		return true
	}
	p, err := peer(c)
	return err == nil && os.Geteuid() == 0 && askPolkit(p) == nil
}

// askPolkit returns nil if polkit authorizes the process
// (org.freedesktop.PolicyKit1.Authority).
func askPolkit(p *unix.Ucred) error {
	ctx, cancel := context.WithTimeout(context.Background(), authorizeTimeout)
	defer cancel()
	start, err := startTime(p.Pid)
	if err != nil {
		return err
	}
	b, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return err
	}
	defer b.Close()
	type subject struct {
		Kind    string
		Details map[string]dbus.Variant
	}
	var result struct {
		Authorized, Challenge bool
		Details               map[string]string
	}
	process := subject{"unix-process", map[string]dbus.Variant{"pid": dbus.MakeVariant(uint32(p.Pid)), "start-time": dbus.MakeVariant(start), "uid": dbus.MakeVariant(int32(p.Uid))}}
	const authority = "org.freedesktop.PolicyKit1"
	err = b.Object(authority, "/org/freedesktop/PolicyKit1/Authority").CallWithContext(ctx, authority+".Authority.CheckAuthorization", 0,
		process, action, map[string]string{}, uint32(0), "").Store(&result)
	if err == nil && !result.Authorized {
		err = fmt.Errorf("polkit does not authorize %s", action)
	}
	return err
}

// startTime is when a process started, in clock ticks since boot (field 22 of
// proc_pid_stat(5)), by which polkit tells it from a later one of its number.
func startTime(pid int32) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	const field = 22 - 3 // after the name, which is in parentheses and may contain anything
	_, rest, _ := strings.Cut(string(b[strings.LastIndexByte(string(b), ')'):]), " ")
	fields := strings.Fields(rest)
	if len(fields) <= field {
		return 0, fmt.Errorf("/proc/%d/stat is too short", pid)
	}
	return strconv.ParseUint(fields[field], 10, 64)
}
