package bootentry

import (
	"bytes"
	"debug/pe"
	"errors"
	"fmt"
	"io"
	"strings"
)

// ErrNotUKI is returned for a file that is no unified kernel image.
var ErrNotUKI = errors.New("not a unified kernel image")

// maxText bounds the sections of a UKI that are text, in bytes.
const maxText = 64 << 10

// UKI is a unified kernel image (UAPI Group, "Unified Kernel Image"): a PE
// binary whose sections are a kernel and all that it needs.
type UKI struct {
	r        io.ReaderAt
	sections [][]section // [0] are the common ones, [n+1] those of profile n
}

type section struct {
	name      string
	off, size int64
}

// ParseUKI reads the sections of a UKI of size bytes. An add-on, which has no
// kernel, is accepted only if addon is set.
func ParseUKI(r io.ReaderAt, size int64, addon bool) (*UKI, error) {
	var magic [2]byte
	if _, err := r.ReadAt(magic[:], 0); err != nil || magic != [2]byte{'M', 'Z'} {
		return nil, ErrNotUKI
	}
	f, err := pe.NewFile(io.NewSectionReader(r, 0, size))
	if err != nil {
		return nil, ErrNotUKI
	}
	u := &UKI{r: r, sections: make([][]section, 1)}
	kernel := false
	for _, s := range f.Sections {
		// The raw data is padded to the file alignment.
		n, off := min(int64(s.Size), int64(s.VirtualSize)), int64(s.Offset)
		if off > size || n > size-off {
			return nil, fmt.Errorf("section %q lies beyond the end of the file: it is cut off", s.Name)
		}
		if s.Name == ".profile" {
			u.sections = append(u.sections, nil)
		}
		last := len(u.sections) - 1
		u.sections[last] = append(u.sections[last], section{s.Name, off, n})
		kernel = kernel || s.Name == ".linux"
	}
	if !kernel && !addon {
		return nil, ErrNotUKI
	}
	return u, nil
}

// Profiles is the number of profiles, at least 1.
func (u *UKI) Profiles() int { return max(len(u.sections)-1, 1) }

// Section returns the content of a section in a profile: the profile's own,
// else the common one, else nil.
func (u *UKI) Section(name string, profile int) *io.SectionReader {
	groups := []int{0}
	if profile+1 < len(u.sections) {
		groups = []int{profile + 1, 0}
	}
	for _, g := range groups {
		for _, s := range u.sections[g] {
			if s.name == name {
				return io.NewSectionReader(u.r, s.off, s.size)
			}
		}
	}
	return nil
}

// Text returns a section as text, without what follows a NUL and without
// white space around it.
func (u *UKI) Text(name string, profile int) string {
	s := u.Section(name, profile)
	if s == nil {
		return ""
	}
	b, err := io.ReadAll(io.LimitReader(s, maxText))
	if err != nil {
		return ""
	}
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return strings.TrimSpace(string(b))
}

// CommandLine returns .cmdline with line breaks as spaces.
func (u *UKI) CommandLine(profile int) string {
	return strings.Join(strings.Fields(u.Text(".cmdline", profile)), " ")
}

// release returns a field of .osrel, an os-release(5).
func (u *UKI) release(field string) string {
	for line := range strings.Lines(u.Text(".osrel", 0)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), field+"="); ok {
			return strings.Trim(v, `"'`)
		}
	}
	return ""
}
