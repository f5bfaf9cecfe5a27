// Package logging is log/slog as the SYSTEMD_LOG_* environment asks for it
// (systemd(1), "Environment"): level, target, colour, location, thread and
// time.
package logging

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// LevelNotice is between slog's Info and Warn, as in syslog.
const LevelNotice = slog.Level(2)

// levels maps the names and numbers of SYSTEMD_LOG_LEVEL; the index is the
// syslog priority.
var levels = [...]struct {
	name  string
	level slog.Level
}{{"emerg", 20}, {"alert", 16}, {"crit", 12}, {"err", slog.LevelError}, {"warning", slog.LevelWarn},
	{"notice", LevelNotice}, {"info", slog.LevelInfo}, {"debug", slog.LevelDebug}}

// priority is a level's syslog priority, 0 (emerg) to 7 (debug).
func priority(l slog.Level) int {
	for p := range levels {
		if l >= levels[p].level {
			return p
		}
	}
	return len(levels) - 1
}

// Settings are the environment's wishes.
type Settings struct {
	Level                      slog.Level
	Target                     string
	Color, Location, TID, Time bool
}

// Targets of SYSTEMD_LOG_TARGET.
var Targets = []string{"console", "console-prefixed", "kmsg", "journal", "journal-or-kmsg", "auto", "null"}

// FromEnvironment reads the settings. Color is preset by whether the output is
// a terminal. The problems found are messages to be logged; like systemd we go
// on without the setting at fault.
func FromEnvironment(getenv func(string) string, terminal bool) (s Settings, problems []string) {
	s = Settings{Target: "auto", Color: terminal && getenv("NO_COLOR") == "" && getenv("TERM") != "dumb"}
	if v := getenv("SYSTEMD_LOG_LEVEL"); v != "" {
		l, ok := parseLevel(v)
		if !ok {
			problems = append(problems, fmt.Sprintf("Failed to parse $SYSTEMD_LOG_LEVEL %q, ignoring.", v))
		}
		s.Level = l
	}
	if v := getenv("SYSTEMD_LOG_TARGET"); v != "" {
		if !contains(Targets, v) {
			problems = append(problems, fmt.Sprintf("Failed to parse $SYSTEMD_LOG_TARGET %q, ignoring.", v))
		} else {
			s.Target = v
		}
	}
	colors := getenv("SYSTEMD_LOG_COLOR")
	if colors == "" {
		colors = colorMode(getenv("SYSTEMD_COLORS"))
	}
	for _, b := range []struct {
		name, value string
		to          *bool
	}{{"SYSTEMD_LOG_COLOR", colors, &s.Color}, {"SYSTEMD_LOG_LOCATION", getenv("SYSTEMD_LOG_LOCATION"), &s.Location},
		{"SYSTEMD_LOG_TID", getenv("SYSTEMD_LOG_TID"), &s.TID}, {"SYSTEMD_LOG_TIME", getenv("SYSTEMD_LOG_TIME"), &s.Time}} {
		if b.value == "" {
			continue
		}
		v, ok := boolean(b.value)
		if !ok {
			problems = append(problems, fmt.Sprintf("Failed to parse $%s %q, ignoring.", b.name, b.value))
			continue
		}
		*b.to = v
	}
	return s, problems
}

// colorMode makes a boolean of SYSTEMD_COLORS, which also knows numbers of
// colours: 16, 256 and 24bit, auto-….
func colorMode(v string) string {
	switch {
	case v == "16" || v == "256" || v == "24bit":
		return "yes"
	case strings.HasPrefix(v, "auto"):
		return ""
	}
	return v
}

func boolean(s string) (v, ok bool) {
	switch strings.ToLower(s) {
	case "1", "yes", "y", "true", "t", "on":
		return true, true
	case "0", "no", "n", "false", "f", "off":
		return false, true
	}
	return false, false
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

// parseLevel takes a name, a number from 0 to 7, or a comma-separated list
// of these and TARGET:LEVEL, of which the last plain one counts.
func parseLevel(s string) (level slog.Level, ok bool) {
	for part := range strings.SplitSeq(s, ",") {
		if _, after, found := strings.Cut(part, ":"); found {
			part = after
		}
		if n, err := strconv.Atoi(part); err == nil && n >= 0 && n < len(levels) {
			level, ok = levels[n].level, true
			continue
		}
		found := false
		for _, l := range levels {
			if l.name == part {
				level, ok, found = l.level, true, true
			}
		}
		if !found {
			return slog.LevelInfo, false
		}
	}
	return level, ok
}

// New returns a logger for the settings that writes to stderr where the
// target is the console.
func New(s Settings, stderr io.Writer) *slog.Logger {
	return slog.New(&handler{settings: s, sink: open(s.Target, stderr, s)})
}

// sink takes finished records.
type sink interface {
	log(r slog.Record, message string, location string)
}

func open(target string, stderr io.Writer, s Settings) sink {
	switch target {
	case "null":
		return nullSink{}
	case "kmsg":
		if k := openKmsg(); k != nil {
			return k
		}
	case "journal", "journal-or-kmsg":
		if j := openJournal(); j != nil {
			return j
		}
		if k := openKmsg(); k != nil && target == "journal-or-kmsg" {
			return k
		}
	case "auto":
		if onJournal(stderr) {
			if j := openJournal(); j != nil {
				return j
			}
		}
	}
	return &console{w: stderr, s: s, prefixed: target == "console-prefixed"}
}

// handler turns attributes into text and hands records to the sink.
type handler struct {
	settings Settings
	sink     sink
	prefix   string // attributes of With
	group    string
}

// Enabled implements slog.Handler.
func (h *handler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.settings.Level }

// WithAttrs implements slog.Handler.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	var b strings.Builder
	for _, a := range attrs {
		writeAttr(&b, h.group, a)
	}
	c.prefix += b.String()
	return &c
}

// WithGroup implements slog.Handler.
func (h *handler) WithGroup(name string) slog.Handler {
	c := *h
	c.group += name + "."
	return &c
}

// Handle implements slog.Handler.
func (h *handler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	b.WriteString(h.prefix)
	r.Attrs(func(a slog.Attr) bool {
		writeAttr(&b, h.group, a)
		return true
	})
	msg := r.Message
	if b.Len() > 0 {
		msg += " (" + strings.TrimPrefix(b.String(), " ") + ")"
	}
	location := ""
	if h.settings.Location && r.PC != 0 {
		f, _ := runtime.CallersFrames([]uintptr{r.PC}).Next()
		location = fmt.Sprintf("%s:%d", shortFile(f.File), f.Line)
	}
	h.sink.log(r, printable(msg), location)
	return nil
}

// shortFile keeps the directory and name of a source file.
func shortFile(s string) string {
	i := strings.LastIndexByte(s, '/')
	if j := strings.LastIndexByte(s[:max(i, 0)], '/'); j >= 0 {
		return s[j+1:]
	}
	return s
}

func writeAttr(b *strings.Builder, group string, a slog.Attr) {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		for _, m := range v.Group() {
			writeAttr(b, group+a.Key+".", m)
		}
		return
	}
	s := v.String()
	if strings.ContainsAny(s, " =\"\n") {
		s = strconv.Quote(s)
	}
	b.WriteString(" " + group + a.Key + "=" + s)
}

// printable keeps control characters, as of a guest's message, off terminals.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\t' && (r < ' ' || r >= 0x7f && r < 0xa0) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}

type nullSink struct{}

func (nullSink) log(slog.Record, string, string) {}

// console writes lines to the standard error.
type console struct {
	mu       sync.Mutex // serialises lines
	w        io.Writer
	s        Settings
	prefixed bool // with the priority as <N>, for the journal or kmsg to parse
}

func (c *console) log(r slog.Record, msg, location string) {
	var b strings.Builder
	p := priority(r.Level)
	if c.prefixed {
		fmt.Fprintf(&b, "<%d>", p)
	}
	if c.s.Time {
		b.WriteString(r.Time.Format(time.DateTime) + " ")
	}
	if c.s.TID {
		fmt.Fprintf(&b, "(%d) ", unix.Gettid())
	}
	if location != "" {
		b.WriteString(location + ": ")
	}
	on, off := "", ""
	if c.s.Color && !c.prefixed {
		on, off = color(p)
	}
	b.WriteString(on + msg + off + "\n")
	c.mu.Lock()
	defer c.mu.Unlock()
	io.WriteString(c.w, b.String()) //nolint:errcheck // where should that be logged
}

// color is how systemd shows a priority.
func color(p int) (on, off string) {
	switch {
	case p <= 3:
		return "\x1b[0;1;31m", "\x1b[0m"
	case p == 4:
		return "\x1b[0;1;38;5;185m", "\x1b[0m"
	case p == 5:
		return "\x1b[0;1;39m", "\x1b[0m"
	case p == 7:
		return "\x1b[0;38;5;245m", "\x1b[0m"
	}
	return "", ""
}

// Limit bounds how often something is logged. The zero value allows nothing.
type Limit struct {
	Interval time.Duration
	Burst    int

	mu    sync.Mutex // guards what follows
	start time.Time
	count int
}

// GuestLimit is for messages that a guest can cause: ten in half a minute.
func GuestLimit() *Limit { return &Limit{Interval: 30 * time.Second, Burst: 10} }

// Allow reports whether one more is within the limit.
func (l *Limit) Allow() bool { return l.allow(time.Now()) }

func (l *Limit) allow(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.start) > l.Interval {
		l.start, l.count = now, 0
	}
	l.count++
	return l.count <= l.Burst
}

// Kernel log lines allowed in an interval, as systemd limits itself.
const (
	kmsgInterval = 5 * time.Second
	kmsgBurst    = 200
)

// kmsg writes to the kernel's log, rate-limited.
type kmsg struct {
	w     io.Writer
	limit *Limit
}

func newKmsg(w io.Writer) *kmsg { return &kmsg{w, &Limit{Interval: kmsgInterval, Burst: kmsgBurst}} }

func openKmsg() sink {
	f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return nil
	}
	return newKmsg(f)
}

func (k *kmsg) log(r slog.Record, msg, location string) {
	if !k.limit.Allow() {
		return
	}
	if location != "" {
		msg = location + ": " + msg
	}
	fmt.Fprintf(k.w, "<%d>gvmspawn[%d]: %s\n", 3<<3|priority(r.Level), os.Getpid(), msg)
}
