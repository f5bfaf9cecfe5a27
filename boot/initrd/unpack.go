package initrd

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	xz "github.com/therootcompany/xz"
)

// unpackModule expands a module file by its suffix: .ko, .ko.xz, .ko.zst, .ko.gz.
func unpackModule(name string, b []byte) ([]byte, error) {
	var r io.Reader
	var err error
	switch {
	case strings.HasSuffix(name, ".xz"):
		r, err = xz.NewReader(bytes.NewReader(b), maxModule)
	case strings.HasSuffix(name, ".gz"):
		r, err = gzip.NewReader(bytes.NewReader(b))
	case strings.HasSuffix(name, ".zst"):
		var d *zstd.Decoder
		d, err = zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxModule))
		if err == nil {
			defer d.Close()
			r = d
		}
	default:
		return b, nil
	}
	if err != nil {
		return nil, fmt.Errorf("module file %s cannot be unpacked: %w", name, err)
	}
	out := bytes.NewBuffer(make([]byte, 0, 4*len(b)))
	n, err := io.Copy(out, io.LimitReader(r, maxModule+1))
	if err == nil && n > maxModule {
		err = fmt.Errorf("it is longer than %d bytes", maxModule)
	}
	if err != nil {
		return nil, fmt.Errorf("module file %s cannot be unpacked: %w", name, err)
	}
	return out.Bytes(), nil
}
