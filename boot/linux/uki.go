package linux

import (
	"debug/pe"
	"errors"
	"fmt"
	"io"
	"strings"
)

// UKI is a unified kernel image: a PE file whose sections hold a kernel and
// what belongs to it (UKI specification, "UKI Components"). A section that is
// missing is nil or empty. Of a multi-profile image, these are the sections of
// the base profile, those before the first .profile section.
type UKI struct {
	Name   string
	Linux  *io.SectionReader // .linux, for [New]
	Initrd *io.SectionReader // .initrd
	Ucode  *io.SectionReader // .ucode: microcode, an initrd to go before .initrd

	CommandLine string // .cmdline, without the newline at its end
	OSRelease   string // .osrel
	Uname       string // .uname: the kernel release

	closer io.Closer
}

// maxTextSection bounds .cmdline, .osrel and .uname.
const maxTextSection = 64 << 10

// OpenUKI opens the unified kernel image at path. The error is one sentence
// that names the path.
func OpenUKI(path string) (*UKI, error) {
	f, _, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	u, err := NewUKI(path, f)
	if err != nil {
		f.Close()
		return nil, err
	}
	u.closer = f
	return u, nil
}

// NewUKI reads the unified kernel image r; name is for error sentences.
func NewUKI(name string, r io.ReaderAt) (*UKI, error) {
	u := &UKI{Name: name}
	if err := u.parse(r); err != nil {
		return nil, fmt.Errorf("%s %w", name, err)
	}
	return u, nil
}

func (u *UKI) parse(r io.ReaderAt) error {
	sections, err := peSections(r)
	if err != nil {
		return fmt.Errorf("is not a unified kernel image: %w", err)
	}
	for _, s := range sections {
		// UKI specification, "Multi-Profile UKIs": the base profile ends at
		// the first .profile section.
		if s.Name == ".profile" {
			break
		}
		if err := u.take(r, s); err != nil {
			return fmt.Errorf("is damaged: section %s: %w", s.Name, err)
		}
	}
	if u.Linux == nil {
		return errors.New("is not a unified kernel image: it has no .linux section")
	}
	return nil
}

// take keeps one section if it is one of ours and the first of its name.
func (u *UKI) take(r io.ReaderAt, s *pe.Section) error {
	readers := map[string]**io.SectionReader{".linux": &u.Linux, ".initrd": &u.Initrd, ".ucode": &u.Ucode}
	texts := map[string]*string{".cmdline": &u.CommandLine, ".osrel": &u.OSRelease, ".uname": &u.Uname}
	// Raw data is padded to the file alignment; VirtualSize is the true length.
	n := int64(min(s.Size, s.VirtualSize))
	part := io.NewSectionReader(r, int64(s.Offset), n)
	if p := readers[s.Name]; p != nil && *p == nil {
		var last [1]byte
		if n > 0 {
			if _, err := part.ReadAt(last[:], n-1); err != nil {
				return errors.New("the file is truncated")
			}
		}
		*p = part
	}
	if p := texts[s.Name]; p != nil && *p == "" {
		if n > maxTextSection {
			return errors.New("it is too long")
		}
		b, err := io.ReadAll(part)
		if err != nil || int64(len(b)) != n {
			return errors.New("the file is truncated")
		}
		*p = strings.TrimRight(string(b), "\x00\n\r ")
	}
	return nil
}

// peSections lists the sections of a PE file.
func peSections(r io.ReaderAt) ([]*pe.Section, error) {
	f, err := pe.NewFile(r)
	if err != nil {
		return nil, err
	}
	return f.Sections, nil
}

// isUKI reports whether r is a PE file with a .linux section.
func isUKI(r io.ReaderAt) bool {
	_, err := NewUKI("", r)
	return err == nil
}

// Close closes the file, if [OpenUKI] opened one.
func (u *UKI) Close() error {
	if u.closer == nil {
		return nil
	}
	return u.closer.Close()
}
