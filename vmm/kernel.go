package vmm

import (
	"fmt"
	"os"

	"github.com/gvmspawn/gvmspawn/boot/linux"
)

// openInitrds opens the initrds; the second result closes them.
func openInitrds(paths []string) ([]linux.Initrd, func(), error) {
	var files []*os.File
	closeAll := func() {
		for _, f := range files {
			_ = f.Close()
		}
	}
	var initrds []linux.Initrd
	for _, p := range paths {
		f, err := os.Open(p)
		if err != nil {
			closeAll()
			return nil, nil, fmt.Errorf("cannot open the initrd: %w", err)
		}
		files = append(files, f)
		st, err := f.Stat()
		if err == nil && !st.Mode().IsRegular() {
			err = fmt.Errorf("initrd %s is not a regular file", p)
		}
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		initrds = append(initrds, linux.Initrd{Name: p, Size: st.Size(), Data: f})
	}
	return initrds, closeAll, nil
}
