package main

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		v    []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 2, 100}, 3}} {
		if got := median(tt.v); got != tt.want {
			t.Errorf("median of %v is %v, want %v", tt.v, got, tt.want)
		}
	}
}

func testEnvironment(t *testing.T) *environment {
	return &environment{ctx: t.Context(), dir: t.TempDir(), only: regexp.MustCompile(""), log: io.Discard, made: map[string]string{}}
}

func TestReport(t *testing.T) {
	// Subjects take turns; one that fails is out, with the reason.
	var order []string
	fake := func(name string, values ...float64) subject {
		return subject{name, func(context.Context) (numbers, error) {
			order = append(order, name)
			if len(values) == 0 {
				return nil, errors.New("broken\nmore")
			}
			v := values[0]
			values = values[1:]
			return numbers{"m": v}, nil
		}}
	}
	p := &plan{metrics: []metric{{"m", "s", false}}, runs: 3,
		subjects: []subject{fake("gvmspawn", 1, 9, 2), fake("peer", 4, 4, 5), fake("bad")}}
	r := newReport(3)
	r.add(testEnvironment(t), "case", p)
	if got := strings.Join(order, " "); got != "gvmspawn peer bad peer gvmspawn gvmspawn peer" {
		t.Errorf("order %q", got)
	}
	if len(r.Rows) != 1 || len(r.Rows[0].Subjects) != 2 {
		t.Fatalf("rows %+v", r.Rows)
	}
	if c := r.Rows[0].Subjects; c[0].Median != 2 || c[1].Median != 4 || c[1].Ratio != 0.5 {
		t.Errorf("cells %+v", c)
	}
	if len(r.Skips) != 1 || r.Skips[0] != (skipped{"case", "bad: broken"}) {
		t.Errorf("skips %+v", r.Skips)
	}
	var text bytes.Buffer
	r.print(&text)
	if s := text.String(); !strings.Contains(s, "0.50") || !strings.Contains(s, "skipped: case: bad: broken") {
		t.Errorf("table:\n%s", s)
	}
	file := filepath.Join(t.TempDir(), "r.json")
	if err := r.writeJSON(file); err != nil {
		t.Fatal(err)
	}
	data, _ := os.ReadFile(file)
	var back report
	if err := json.Unmarshal(data, &back); err != nil || back.Rows[0].Subjects[1].Ratio != 0.5 {
		t.Errorf("JSON %s, %v", data, err)
	}
}

func TestProcessSeesWords(t *testing.T) {
	p, err := launch(t.Context(), time.Minute, []string{"/bin/sh", "-c", "echo one; sleep 0.2; echo RESULT x 2.5; echo BENCH-ERROR bad; echo two"}, nil, "one", "two", "three")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.await("one"); err != nil {
		t.Fatal(err)
	}
	if err := p.wait(); err != nil {
		t.Fatal(err)
	}
	if a, b := p.seen.at("one"), p.seen.at("two"); a == 0 || b < a+100*time.Millisecond || p.seen.at("three") != 0 {
		t.Errorf("one %v, two %v, three %v", a, b, p.seen.at("three"))
	}
	if err := p.await("three"); err == nil {
		t.Error("a word that never came was awaited without an error")
	}
	n, err := p.results()
	if n["x"] != 2.5 || err == nil || !strings.Contains(err.Error(), "bad") {
		t.Errorf("results %v, %v", n, err)
	}
}

func TestProcessIsKilledAtItsLimit(t *testing.T) {
	p, err := launch(t.Context(), 50*time.Millisecond, []string{"/bin/sleep", "60"}, nil, "never")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.wait(); err == nil || !strings.Contains(err.Error(), "no end within") {
		t.Errorf("error %v", err)
	}
}

func TestTinyKernelIsPVH(t *testing.T) {
	f, err := elf.NewFile(bytes.NewReader(tinyKernel()))
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Progs) != 2 || f.Progs[0].Type != elf.PT_LOAD || f.Progs[1].Type != elf.PT_NOTE {
		t.Fatalf("segments %+v", f.Progs)
	}
	note := make([]byte, f.Progs[1].Filesz)
	if _, err := f.Progs[1].ReadAt(note, 0); err != nil {
		t.Fatal(err)
	}
	if f.ByteOrder.Uint32(note[8:]) != 18 || string(note[12:16]) != "Xen\x00" || uint64(f.ByteOrder.Uint32(note[16:])) != f.Entry {
		t.Errorf("note % x", note)
	}
}

func TestInsideSubjects(t *testing.T) {
	p := &plan{}
	out := "noise\r\nINSIDE {\"name\":\"a\",\"numbers\":{\"first instruction\":7}}\r\nINSIDE {\"name\":\"b\",\"error\":\"does not boot\"}\n"
	if err := insideSubjects(p, out, true); err != nil || len(p.subjects) != 2 {
		t.Fatalf("%v, %d subjects", err, len(p.subjects))
	}
	if n, err := p.subjects[0].run(t.Context()); err != nil || n["init"] != 7 {
		t.Errorf("a: %v, %v", n, err)
	}
	if _, err := p.subjects[1].run(t.Context()); err == nil || err.Error() != "does not boot" {
		t.Errorf("b: %v", err)
	}
	if insideSubjects(&plan{}, "nothing", false) == nil {
		t.Error("no error without results")
	}
}

func TestRunRejectsBadArguments(t *testing.T) {
	for _, args := range [][]string{{"-run", "("}, {"-n", "0"}, {"-what"}} {
		if got := run(args, io.Discard, io.Discard); got != 2 {
			t.Errorf("run(%q) = %d, want 2", args, got)
		}
	}
	var out bytes.Buffer
	if got := run([]string{"-list"}, &out, io.Discard); got != 0 || !strings.Contains(out.String(), "boot-soft") {
		t.Errorf("-list = %d, printed %q", got, out.String())
	}
}

// TestResultCPU: the processor time between BEGIN and RESULT, and rates by it.
func TestResultCPU(t *testing.T) {
	used := 0.5
	w := watcher{cpu: numbers{}, used: func() float64 { used++; return used }}
	for _, s := range []string{"BEGIN ops-a\n", "noise\r\nRESULT ops-a 3\nBEG", "IN b\nBEGIN b\nRESULT b 7\nRESULT c 1\n"} {
		_, _ = w.Write([]byte(s))
	}
	if len(w.cpu) != 2 || w.cpu["ops-a"] != 1 || w.cpu["b"] != 1 {
		t.Errorf("processor times %v", w.cpu)
	}
	n := numbers{"ops-a": 8, "ops-a CPU": 2, "ops-b": 1, "ops-b CPU": 1, "gcc": 3}
	stressRates(n)
	if n["cpu-a"] != 4 || n[stressMean] != 2 || n["gcc"] != 3 || len(n) != 4 {
		t.Errorf("rates %v", n)
	}
}
