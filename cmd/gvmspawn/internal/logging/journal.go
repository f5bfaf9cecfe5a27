package logging

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// journalSocket is where journald takes entries (systemd.io, "Native Journal Protocol").
const journalSocket = "/run/systemd/journal/socket"

// journal sends entries to journald.
type journal struct{ c *net.UnixConn }

func openJournal() sink { return openJournalAt(journalSocket) }

func openJournalAt(path string) sink {
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil
	}
	return &journal{c}
}

// onJournal reports whether w is the stream that journald gave this process
// as its standard error (systemd.exec(5), $JOURNAL_STREAM).
func onJournal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return false
	}
	return os.Getenv("JOURNAL_STREAM") == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

// maxEntry keeps a message within one datagram.
const maxEntry = 32 << 10

func (j *journal) log(r slog.Record, msg, location string) {
	var b strings.Builder
	msg = msg[:min(len(msg), maxEntry)]
	fmt.Fprintf(&b, "MESSAGE=%s\nPRIORITY=%d\nSYSLOG_FACILITY=3\nSYSLOG_IDENTIFIER=gvmspawn\n", msg, priority(r.Level))
	if file, line, found := strings.Cut(location, ":"); found {
		fmt.Fprintf(&b, "CODE_FILE=%s\nCODE_LINE=%s\n", file, line)
	}
	io.WriteString(j.c, b.String()) //nolint:errcheck // a journal that is gone cannot be told
}
