package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// insideFlag makes this program the half that runs within the testbed.
const insideFlag = "-inside"

// insideJob is one subject in the testbed.
type insideJob struct {
	Name  string     `json:"name"`
	Kind  insideKind `json:"kind"`
	Argv  []string   `json:"argv"`
	Word  string     `json:"word"` // what the guest prints when it is where time is taken
	Limit int        `json:"limit"`
	// Share is a directory to make before, Server what must run beside.
	Share  string   `json:"share,omitempty"`
	Server []string `json:"server,omitempty"`
	RAM    int      `json:"ram,omitempty"`   // MiB, of insideIdle
	Vsock  string   `json:"vsock,omitempty"` // of insideVsock: how this side reaches the guest
}

// insideKind is what is measured of a job.
type insideKind string

const (
	insideStart insideKind = ""      // the time until a word
	insideJobs  insideKind = "jobs"  // what the guest program reports
	insideIdle  insideKind = "idle"  // the process while its guest is idle
	insideReady insideKind = "ready" // the time until READY=1
	insideVsock insideKind = "vsock" // insideJobs with streams between the guest and this side
)

// insideResult is a line of the half in the testbed, after insideMark.
type insideResult struct {
	Name    string  `json:"name"`
	Numbers numbers `json:"numbers,omitempty"`
	Error   string  `json:"error,omitempty"`
}

const insideMark = "INSIDE "

// runInside runs the jobs of a file and prints their results.
func runInside(path string, stdout, stderr io.Writer) int {
	var list []insideJob
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &list)
	}
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	for _, j := range list {
		r := insideResult{Name: j.Name}
		n, err := j.run(context.Background())
		if err != nil {
			r.Error = err.Error()
		}
		r.Numbers = n
		line, _ := json.Marshal(r)
		fmt.Fprintf(stdout, "%s%s\n", insideMark, line)
	}
	return 0
}

// run measures one job.
func (j *insideJob) run(ctx context.Context) (numbers, error) {
	limit := time.Duration(j.Limit) * time.Second
	switch j.Kind {
	case insideJobs:
		return j.runGuest(ctx, limit)
	case insideVsock:
		return j.runVsock(ctx, limit)
	case insideIdle:
		return idleSubject(j.Name, machine{ram: j.RAM}, j.Argv).run(ctx)
	case insideReady:
		return j.runReady(ctx, limit)
	}
	return timeTiny(ctx, j.Argv, j.Word, limit)
}

// kvmStartCase is process start → first guest instruction on genuine KVM. Time
// in the testbed is a count of instructions, 2 ns each; it is the same in every
// run, so one is enough.
var kvmStartCase = benchmark{
	name:  "kvm-start",
	about: "start of the process to the first instruction of a tiny PVH kernel, on the testbed's KVM (time counts instructions)",
	prepare: func(e *environment) (*plan, error) {
		kernel := filepath.Join(e.dir, "tiny")
		if err := os.WriteFile(kernel, tinyKernel(), 0o644); err != nil {
			return nil, err
		}
		initrd, err := e.initrd("tiny", guesttest.KernelAsset(e.host, "kernel-bookworm"))
		if err != nil {
			return nil, err
		}
		p := &plan{metrics: startMetrics, runs: 1}
		return p, e.inTestbed(p, machine{kernel: kernel, initrd: initrd, ram: 256}, tinyMark, false)
	},
}

// kvmBootCase is a stock kernel up to its init on genuine KVM.
var kvmBootCase = benchmark{
	name:  "kvm-boot",
	about: "start of the process to the init of bookworm's cloud kernel, on the testbed's KVM (time counts instructions)",
	prepare: func(e *environment) (*plan, error) {
		k := guesttest.KernelAsset(e.host, "kernel-bookworm")
		initrd, err := e.initrd("boot", k)
		if err != nil {
			return nil, err
		}
		metrics := append([]metric{{"init", "ms", false}}, startMetrics[1:]...)
		p := &plan{metrics: metrics, runs: 1}
		return p, e.inTestbed(p, machine{kernel: k.Path, initrd: initrd, ram: 256}, guestReady, true)
	},
}

// inTestbed runs gvmspawn, QEMU and gokvm in one testbed and makes subjects of
// their results.
func (e *environment) inTestbed(p *plan, m machine, word string, linux bool) error {
	t, err := e.newInside(m)
	if err != nil {
		return err
	}
	m = t.machine
	m.share = "/root"
	t.jobs = append(t.jobs, insideJob{Name: "gvmspawn", Argv: t.inside.gvmspawnArgs(m, "yes"), Word: word, Limit: insideLimit})
	if err := carryQEMU(t.bed.Files); err != nil {
		p.skip("%v", err)
	} else {
		m.share = ""
		t.jobs = append(t.jobs, insideJob{Name: "QEMU KVM", Argv: t.qemu(m, ""), Word: word, Limit: insideLimit})
	}
	if gokvm, err := e.build("gokvm", "github.com/bobuhiro11/gokvm"); err != nil {
		p.skip("%v", err)
	} else {
		t.bed.Files["bin/gokvm"] = gokvm
		argv := []string{"/bin/gokvm", "boot", "-k", m.kernel, "-i", m.initrd, "-m", fmt.Sprintf("%dM", m.ram), "-p", m.kernelLine()}
		t.jobs = append(t.jobs, insideJob{Name: "gokvm", Argv: argv, Word: word, Limit: insideLimit})
	}
	out, err := t.run("start-" + word)
	if err != nil {
		return err
	}
	return insideSubjects(p, out, linux)
}

// insideTestbed is a run of jobs in the testbed, in preparation.
type insideTestbed struct {
	e       *environment
	inside  environment // as the testbed sees it
	machine machine     // with the names there
	bed     guesttest.Testbed
	jobs    []insideJob
}

// newInside puts the programs and a guest into a testbed.
func (e *environment) newInside(m machine) (*insideTestbed, error) {
	self, err := e.build("bench", "./bench")
	if err != nil {
		return nil, err
	}
	t := &insideTestbed{e: e, inside: *e, machine: m}
	t.inside.gvmspawn = "/bin/gvmspawn"
	t.bed = guesttest.Testbed{Script: "bench " + insideFlag + " /inside.json", Timeout: 8 * time.Minute,
		Files: map[string]string{"bin/gvmspawn": e.gvmspawn, "bin/bench": self, "guest/kernel": m.kernel, "guest/initrd": m.initrd}}
	t.machine.kernel, t.machine.initrd = "/guest/kernel", "/guest/initrd"
	return t, nil
}

// qemu is the command line of QEMU in the testbed.
func (t *insideTestbed) qemu(m machine, socket string) []string {
	return append(qemuArgs("/bin/qemu-system-x86_64", m, "kvm", socket), "-L", "/qemu")
}

// run returns what the jobs printed; those of one name run only once.
func (t *insideTestbed) run(name string) (string, error) {
	name = "testbed-" + name
	if t.e.made[name] != "" {
		return t.e.made[name], nil
	}
	t.jobs = slices.DeleteFunc(t.jobs, func(j insideJob) bool { return !t.e.only.MatchString(j.Name) })
	data, err := json.Marshal(t.jobs)
	if err != nil {
		return "", err
	}
	planFile := filepath.Join(t.e.dir, "inside.json")
	if err := os.WriteFile(planFile, data, 0o644); err != nil {
		return "", err
	}
	t.bed.Files["inside.json"] = planFile
	t.e.made[name] = t.bed.Run(t.e.host).Output
	return t.e.made[name], nil
}

// insideLimit is in the testbed's seconds, several times as long outside.
const insideLimit = 15

// insideSubjects makes a subject of each line of results.
func insideSubjects(p *plan, output string, linux bool) error {
	found := false
	for line := range strings.Lines(output) {
		data, ok := strings.CutPrefix(strings.TrimSpace(line), insideMark)
		if !ok {
			continue
		}
		var r insideResult
		if err := json.Unmarshal([]byte(data), &r); err != nil {
			return fmt.Errorf("testbed: %w", err)
		}
		found = true
		if linux && r.Numbers != nil {
			r.Numbers["init"] = r.Numbers["first instruction"]
		}
		p.subjects = append(p.subjects, subject{r.Name, func(context.Context) (numbers, error) {
			if r.Error != "" {
				return nil, errors.New(r.Error)
			}
			return r.Numbers, nil
		}})
	}
	if !found {
		return fmt.Errorf("the testbed left no results; its job printed: %s", output)
	}
	return nil
}
