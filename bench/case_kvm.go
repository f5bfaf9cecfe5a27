package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// insideFlag makes this program the half that runs within the testbed.
const insideFlag = "-inside"

// insideJob is one subject in the testbed.
type insideJob struct {
	Name  string   `json:"name"`
	Argv  []string `json:"argv"`
	Word  string   `json:"word"` // what the guest prints when it is where time is taken
	Limit int      `json:"limit"`
}

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
		n, err := timeTiny(context.Background(), j.Argv, j.Word, time.Duration(j.Limit)*time.Second)
		if err != nil {
			r.Error = err.Error()
		}
		r.Numbers = n
		line, _ := json.Marshal(r)
		fmt.Fprintf(stdout, "%s%s\n", insideMark, line)
	}
	return 0
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

// firmware are QEMU's files for microvm and linux boot.
var firmware = []string{"bios-microvm.bin", "linuxboot_dma.bin", "pvh.bin", "kvmvapic.bin"}

// inTestbed runs gvmspawn, QEMU and gokvm in one testbed and makes subjects of
// their results.
func (e *environment) inTestbed(p *plan, m machine, word string, linux bool) error {
	files := map[string]string{"bin/gvmspawn": e.gvmspawn, "guest/kernel": m.kernel, "guest/initrd": m.initrd}
	self, err := e.build("bench", "./bench")
	if err != nil {
		return err
	}
	files["bin/bench"] = self
	m.kernel, m.initrd, m.share = "/guest/kernel", "/guest/initrd", "/root"
	inside := *e
	inside.gvmspawn = "/bin/gvmspawn"
	list := []insideJob{{"gvmspawn", inside.gvmspawnArgs(m, "yes"), word, insideLimit}}
	if err := carryQEMU(files); err != nil {
		p.skip("%v", err)
	} else {
		bare := m
		bare.share = ""
		list = append(list, insideJob{"QEMU KVM", append(qemuArgs("/bin/qemu-system-x86_64", bare, "kvm", ""), "-L", "/qemu"), word, insideLimit})
	}
	if gokvm, err := e.build("gokvm", "github.com/bobuhiro11/gokvm"); err != nil {
		p.skip("%v", err)
	} else {
		files["bin/gokvm"] = gokvm
		argv := []string{"/bin/gokvm", "boot", "-k", m.kernel, "-i", m.initrd, "-m", fmt.Sprintf("%dM", m.ram), "-p", m.kernelLine()}
		list = append(list, insideJob{"gokvm", argv, word, insideLimit})
	}
	data, err := json.Marshal(list)
	if err != nil {
		return err
	}
	planFile := filepath.Join(e.dir, "inside.json")
	if err := os.WriteFile(planFile, data, 0o644); err != nil {
		return err
	}
	files["inside.json"] = planFile
	if e.made["testbed-"+word] == "" {
		res := guesttest.Testbed{Script: "bench " + insideFlag + " /inside.json", Files: files, Timeout: 8 * time.Minute}.Run(e.host)
		e.made["testbed-"+word] = res.Output
	}
	return insideSubjects(p, e.made["testbed-"+word], linux)
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

// carryQEMU adds QEMU, the libraries that it needs and its firmware.
func carryQEMU(files map[string]string) error {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return errors.New("QEMU is not installed")
	}
	files["bin/qemu-system-x86_64"] = qemu
	out, err := exec.Command("ldd", qemu).Output()
	if err != nil {
		return fmt.Errorf("libraries of QEMU: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		for _, w := range strings.Fields(line) {
			if !filepath.IsAbs(w) {
				continue
			}
			// A name in the archive, and the file behind its links.
			real, err := filepath.EvalSymlinks(w)
			if err != nil {
				return err
			}
			files[strings.TrimPrefix(w, "/")] = real
		}
	}
	for _, f := range firmware {
		real, err := filepath.EvalSymlinks(filepath.Join("/usr/share/qemu", f))
		if err != nil {
			return fmt.Errorf("firmware of QEMU: %w", err)
		}
		files["qemu/"+f] = real
	}
	return nil
}
