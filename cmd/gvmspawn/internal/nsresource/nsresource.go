// Package nsresource gets a TAP device from systemd-nsresourced for a user
// without privileges (io.systemd.NamespaceResource, systemd-nsresourced(8)).
// The service gives network interfaces to user namespaces that it has given
// user IDs, so one is made that nobody lives in.
package nsresource

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/varlink"
)

// Socket is the service's varlink socket.
const Socket = "/run/systemd/io.systemd.NamespaceResource"

// Timeout bounds the service's answers.
const Timeout = 20 * time.Second

// TAP is a TAP device for a machine.
type TAP struct {
	// File is its only queue, with IFF_NO_PI and IFF_VNET_HDR.
	File *os.File
	// Name is the interface's name on the host.
	Name string
	// Namespace owns the interface: when it is closed, the interface goes.
	Namespace *os.File
}

// Open asks the service at the socket for a TAP device.
func Open(ctx context.Context, socket string) (*TAP, error) {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	d, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("systemd-nsresourced cannot be reached: %w", err)
	}
	c := d.(*net.UnixConn)
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	ns, err := newNamespace()
	if err != nil {
		return nil, err
	}
	tap, err := request(c, ns)
	if err != nil {
		ns.Close()
		return nil, err
	}
	return tap, nil
}

// request makes the two calls.
func request(c *net.UnixConn, ns *os.File) (*TAP, error) {
	const iface = "io.systemd.NamespaceResource."
	name := fmt.Sprintf("gvmspawn-%d", os.Getpid())
	_, files, err := call(c, iface+"AllocateUserRange", map[string]any{"name": name, "mangleName": true, "size": 1, "userNamespaceFileDescriptor": 0}, ns)
	closeAll(files)
	if err != nil {
		return nil, err
	}
	reply, files, err := call(c, iface+"AddNetworkToUserNamespace", map[string]any{"mode": "tap", "userNamespaceFileDescriptor": 0}, ns)
	if err != nil {
		closeAll(files)
		return nil, err
	}
	var out struct {
		HostInterfaceName       string
		InterfaceFileDescriptor int
	}
	if err := json.Unmarshal(reply, &out); err != nil || out.InterfaceFileDescriptor != 0 || len(files) != 1 {
		closeAll(files)
		return nil, errors.New("systemd-nsresourced sent no network interface")
	}
	return &TAP{File: files[0], Name: out.HostInterfaceName, Namespace: ns}, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// Bounds of a reply: its bytes, and its descriptors.
const (
	maxReply = 64 << 10
	maxFiles = 8
)

// call makes a call that passes a file, which is index 0, and returns the
// reply's parameters and files.
func call(c *net.UnixConn, method string, parameters map[string]any, pass *os.File) (json.RawMessage, []*os.File, error) {
	msg, err := json.Marshal(map[string]any{"method": method, "parameters": parameters})
	if err != nil {
		return nil, nil, err
	}
	if _, _, err := c.WriteMsgUnix(append(msg, 0), unix.UnixRights(int(pass.Fd())), nil); err != nil {
		return nil, nil, fmt.Errorf("systemd-nsresourced: %w", err)
	}
	answer, files, err := receive(c)
	if err != nil {
		return nil, files, fmt.Errorf("systemd-nsresourced: %w", err)
	}
	var r struct {
		Error      string
		Parameters json.RawMessage
	}
	if err := json.Unmarshal(answer, &r); err != nil {
		return nil, files, fmt.Errorf("systemd-nsresourced: %w", err)
	}
	if r.Error != "" {
		e := &varlink.Error{Name: r.Error}
		json.Unmarshal(r.Parameters, &e.Parameters) //nolint:errcheck // the name says enough
		return nil, files, fmt.Errorf("systemd-nsresourced refuses: %w", e)
	}
	return r.Parameters, files, nil
}

// receive reads one message with its files.
func receive(c *net.UnixConn) (msg []byte, files []*os.File, err error) {
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*maxFiles))
	for len(msg) < maxReply {
		n, oobn, _, _, err := c.ReadMsgUnix(buf, oob)
		if n == 0 && err == nil {
			err = io.ErrUnexpectedEOF
		}
		files = append(files, rights(oob[:oobn])...)
		if err != nil {
			return nil, files, err
		}
		msg = append(msg, buf[:n]...)
		if i := bytes.IndexByte(msg, 0); i >= 0 {
			return msg[:i], files, nil
		}
	}
	return nil, files, errors.New("the reply is too long")
}

// rights are the files of control messages.
func rights(oob []byte) (files []*os.File) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "network interface"))
		}
	}
	return files
}

// holderName is the name (argv[0]) under which this program does nothing but
// be in a user namespace.
const holderName = "gvmspawn-namespace-holder"

// IsHolder reports whether this process is such a program.
func IsHolder() bool { return os.Args[0] == holderName }

// RunHolder is its whole life, and reports whether this process is one.
func RunHolder() bool {
	if !IsHolder() {
		return false
	}
	io.Copy(io.Discard, os.Stdin) //nolint:errcheck // until we are not needed
	return true
}

// newNamespace makes a user namespace without user IDs.
func newNamespace() (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	c := &exec.Cmd{Path: "/proc/self/exe", Args: []string{holderName}, Stdin: r, Env: []string{"GOMAXPROCS=1"},
		SysProcAttr: &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, Pdeathsig: unix.SIGKILL}}
	err = c.Start()
	r.Close()
	if err != nil {
		return nil, fmt.Errorf("cannot make a user namespace: %w", err)
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", c.Process.Pid))
	c.Process.Kill() //nolint:errcheck // it may have ended
	c.Wait()         //nolint:errcheck // it was killed
	return ns, err
}
