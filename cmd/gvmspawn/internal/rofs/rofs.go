// Package rofs is what read-only file systems in disk images share: the fs.FS
// around a way to look names up and to read files.
package rofs

import (
	"io"
	"io/fs"
	"path"
	"sort"
	"time"
)

// Node is a file or directory of an image.
type Node interface {
	io.ReaderAt // of a regular file
	Size() int64
	IsDir() bool
	// Entries are the names in a directory and what they are, without
	// "." and "..".
	Entries() (map[string]bool, error) // value: a directory
}

// FS makes an fs.FS of a function that finds the node of a valid path. Its
// error is fs.ErrNotExist or says what is damaged.
func FS(find func(name string) (Node, error)) fs.FS { return fsys(find) }

type fsys func(string) (Node, error)

// Open implements fs.FS.
func (f fsys) Open(name string) (fs.File, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	n, err := f(name)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	i := info{path.Base(name), n.Size(), n.IsDir()}
	if n.IsDir() {
		return &dir{info: i, node: n, fsys: f, path: name}, nil
	}
	return file{io.NewSectionReader(n, 0, n.Size()), i}, nil
}

type info struct {
	name  string
	size  int64
	isDir bool
}

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return i.size }
func (i info) IsDir() bool        { return i.isDir }
func (i info) ModTime() time.Time { return time.Time{} }
func (i info) Sys() any           { return nil }
func (i info) Mode() fs.FileMode {
	if i.isDir {
		return fs.ModeDir | 0o555
	}
	return 0o444
}

type file struct {
	*io.SectionReader
	info info
}

func (f file) Stat() (fs.FileInfo, error) { return f.info, nil }
func (f file) Close() error               { return nil }

type dir struct {
	info info
	node Node
	fsys fsys
	path string
	list []fs.DirEntry
	read bool
}

func (d *dir) Stat() (fs.FileInfo, error) { return d.info, nil }
func (d *dir) Close() error               { return nil }
func (d *dir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.info.name, Err: fs.ErrInvalid}
}

// entry is a name in a directory; what it is in full is looked up when asked for.
type entry struct {
	name  string
	isDir bool
	in    *dir
}

func (e entry) Name() string               { return e.name }
func (e entry) IsDir() bool                { return e.isDir }
func (e entry) Type() fs.FileMode          { return info{isDir: e.isDir}.Mode().Type() }
func (e entry) Info() (fs.FileInfo, error) { return fs.Stat(e.in.fsys, path.Join(e.in.path, e.name)) }

// ReadDir implements fs.ReadDirFile.
func (d *dir) ReadDir(n int) ([]fs.DirEntry, error) {
	if !d.read {
		entries, err := d.node.Entries()
		if err != nil {
			return nil, err
		}
		for name, isDir := range entries {
			d.list = append(d.list, entry{name, isDir, d})
		}
		sort.Slice(d.list, func(i, j int) bool { return d.list[i].Name() < d.list[j].Name() })
		d.read = true
	}
	if n <= 0 {
		l := d.list
		d.list = nil
		return l, nil
	}
	if len(d.list) == 0 {
		return nil, io.EOF
	}
	n = min(n, len(d.list))
	l := d.list[:n]
	d.list = d.list[n:]
	return l, nil
}
