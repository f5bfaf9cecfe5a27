package varlink

import (
	"errors"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// maxFiles bounds the files that come with one message.
const maxFiles = 16

var errTooManyFiles = errors.New("varlink: too many files")

// message is a message with the files that came with it.
type message struct {
	bytes []byte
	files []*os.File
}

// fileReader reads a connection and gathers the files that come along
// (SCM_RIGHTS). The kernel ends a read behind the bytes that files came with.
type fileReader struct {
	c     net.Conn
	files []*os.File
}

func (r *fileReader) Read(p []byte) (int, error) {
	u, ok := r.c.(*net.UnixConn)
	if !ok {
		return r.c.Read(p)
	}
	oob := make([]byte, unix.CmsgSpace(maxFiles*4))
	n, oobn, flags, _, err := u.ReadMsgUnix(p, oob)
	if err != nil {
		return 0, err
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	if perr := r.parse(oob[:oobn]); perr != nil {
		return n, perr
	}
	if flags&unix.MSG_CTRUNC != 0 || len(r.files) > maxFiles {
		return n, errTooManyFiles
	}
	return n, nil
}

// parse takes the files out of control messages.
func (r *fileReader) parse(oob []byte) error {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return err
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue // something else
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			r.files = append(r.files, os.NewFile(uintptr(fd), "passed file"))
		}
	}
	return nil
}

// take returns the files of the message that was just read.
func (r *fileReader) take() []*os.File {
	f := r.files
	r.files = nil
	return f
}

func (r *fileReader) close() { closeFiles(r.files) }

func closeFiles(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}
