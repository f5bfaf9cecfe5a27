package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
)

// benchmark is one case: several subjects that do the same work.
type benchmark struct {
	name, about string
	// prepare makes everything that is not measured. An error skips the case.
	prepare func(*environment) (*plan, error)
}

// plan is a prepared case.
type plan struct {
	metrics  []metric
	subjects []subject // gvmspawn first, then its peers
	runs     int       // if not 0, at most so many
	skips    []string  // reasons why a peer or a part is missing
}

// metric is one number that every subject yields.
type metric struct {
	Name string `json:"name"`
	Unit string `json:"unit"`
	// More says that more is better; otherwise less is.
	More bool `json:"more_is_better"`
}

// numbers are the values of one run by the name of the metric.
type numbers map[string]float64

// subject is one program under measurement.
type subject struct {
	name string
	run  func(context.Context) (numbers, error)
}

// skip records why a peer is not measured.
func (p *plan) skip(format string, args ...any) {
	p.skips = append(p.skips, fmt.Sprintf(format, args...))
}

// measureAll runs the cases whose names match.
func measureAll(e *environment, match *regexp.Regexp, n int) *report {
	r := newReport(n)
	for _, c := range cases {
		if !match.MatchString(c.name) || e.ctx.Err() != nil {
			continue
		}
		e.say("%s: %s", c.name, c.about)
		p, err := prepareCase(e, c)
		if err != nil {
			r.Skips = append(r.Skips, skipped{c.name, err.Error()})
			continue
		}
		for _, s := range p.skips {
			r.Skips = append(r.Skips, skipped{c.name, s})
		}
		if p.runs == 0 || p.runs > n {
			p.runs = n
		}
		r.add(e, c.name, p)
	}
	return r
}

// prepareCase turns the panics of the test helpers (see host) into errors.
func prepareCase(e *environment, c benchmark) (p *plan, err error) {
	defer func() {
		if v := recover(); v != nil {
			h, ok := v.(hostPanic)
			if !ok {
				panic(v)
			}
			err = errors.New(string(h))
		}
	}()
	return c.prepare(e)
}

// measure lets the subjects take turns; each turn begins with another one, so
// that nobody always runs on a machine that the same neighbour has warmed up.
// A subject that fails is out.
func measure(e *environment, p *plan, failed func(subject string, err error)) map[string][]numbers {
	all := map[string][]numbers{}
	out := map[string]bool{}
	for turn := range p.runs {
		for i := range p.subjects {
			s := p.subjects[(i+turn)%len(p.subjects)]
			if out[s.name] || !e.only.MatchString(s.name) || e.ctx.Err() != nil {
				continue
			}
			v, err := s.run(e.ctx)
			if err != nil {
				out[s.name] = true
				failed(s.name, err)
				continue
			}
			e.say("  %d %s %v", turn+1, s.name, v)
			all[s.name] = append(all[s.name], v)
		}
	}
	return all
}

// median is the middle of the values, or the mean of the two in the middle.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Clone(v)
	slices.Sort(s)
	m := len(s) / 2
	if len(s)%2 == 1 {
		return s[m]
	}
	return (s[m-1] + s[m]) / 2
}
