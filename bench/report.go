package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"
)

// report is the result of a run.
type report struct {
	Date  string    `json:"date"`
	CPU   string    `json:"cpu"`
	CPUs  int       `json:"cpus"`
	Go    string    `json:"go"`
	Runs  int       `json:"runs"`
	Rows  []row     `json:"rows"`
	Skips []skipped `json:"skipped"`
}

// row is one metric of one case.
type row struct {
	Case string `json:"case"`
	metric
	Subjects []cell `json:"subjects"` // gvmspawn first
}

// cell is what one subject reached.
type cell struct {
	Subject string    `json:"subject"`
	Median  float64   `json:"median"`
	Values  []float64 `json:"values"`
	// Ratio is gvmspawn's median by this one's, 0 if there is none.
	Ratio float64 `json:"gvmspawn_by_this,omitempty"`
}

type skipped struct {
	Case   string `json:"case"`
	Reason string `json:"reason"`
}

func newReport(n int) *report {
	return &report{
		Date: time.Now().UTC().Format(time.DateOnly), CPU: cpuModel(), CPUs: runtime.NumCPU(), Go: runtime.Version(), Runs: n,
	}
}

// cpuModel is the name of the host's CPU.
func cpuModel() string {
	data, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(data)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
			return strings.TrimSpace(v)
		}
	}
	return runtime.GOARCH
}

// add measures a case and makes its rows.
func (r *report) add(e *environment, name string, p *plan) {
	all := measure(e, p, func(subject string, err error) {
		e.say("  %s: %v", subject, err)
		r.Skips = append(r.Skips, skipped{name, subject + ": " + firstLine(err.Error())})
	})
	for _, m := range p.metrics {
		line := row{Case: name, metric: m}
		for _, s := range p.subjects {
			c := cell{Subject: s.name}
			for _, v := range all[s.name] {
				if x, ok := v[m.Name]; ok {
					c.Values = append(c.Values, x)
				}
			}
			if len(c.Values) == 0 {
				continue
			}
			c.Median = median(c.Values)
			line.Subjects = append(line.Subjects, c)
		}
		if len(line.Subjects) > 0 {
			line.compare(p.subjects[0].name)
			r.Rows = append(r.Rows, line)
		}
	}
}

// compare fills the ratios in, if the first subject of the case ran.
func (l *row) compare(first string) {
	if l.Subjects[0].Subject != first {
		return
	}
	for i := range l.Subjects[1:] {
		if c := &l.Subjects[i+1]; c.Median != 0 {
			c.Ratio = l.Subjects[0].Median / c.Median
		}
	}
}

// firstLine keeps the reasons short.
func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	return s
}

// print writes the table: one line a metric and subject.
func (r *report) print(w io.Writer) {
	fmt.Fprintf(w, "%s, %d × %s, %s, medians of %d\n\n", r.Date, r.CPUs, r.CPU, r.Go, r.Runs)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "case\tmetric\tunit\tbetter\tsubject\tmedian\tgvmspawn : this")
	for _, l := range r.Rows {
		better := "less"
		if l.More {
			better = "more"
		}
		for _, c := range l.Subjects {
			ratio := ""
			if c.Ratio != 0 {
				ratio = fmt.Sprintf("%.2f", c.Ratio)
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", l.Case, l.Name, l.Unit, better, c.Subject, figure(c.Median), ratio)
		}
	}
	t.Flush()
	for _, s := range r.Skips {
		fmt.Fprintf(w, "\nskipped: %s: %s", s.Case, s.Reason)
	}
	if len(r.Skips) > 0 {
		fmt.Fprintln(w)
	}
}

// figure prints three significant digits, and integers whole.
func figure(x float64) string {
	if x >= 1000 {
		return fmt.Sprintf("%.0f", x)
	}
	return fmt.Sprintf("%.3g", x)
}

func (r *report) writeJSON(path string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}
