package vmm

import (
	"bufio"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// An idle machine allocates nothing, so nobody else would return to the host what
// only its start needed.
const (
	// settled is how long after its start most of what assembly and the guest's
	// drivers needed is garbage, and after the guest is ready what the boot did.
	settled = 2 * time.Second
	// booted is how long after its start a machine whose guest does not say that it is
	// ready counts as being so.
	booted = 30 * time.Second
)

// trimAll is trim, of what the engine keeps, too.
func (r *runner) trimAll() {
	r.mu.Lock()
	if t, ok := r.vm.(vcpu.Trimmer); ok && !r.stopped { // it is not closed before
		t.Trim()
	}
	r.mu.Unlock()
	trim()
}

// trim returns memory to the host that is not in use: garbage, and the mapped
// pages of the program's file. Those that are needed again come back from the page
// cache, a few hundred KiB of ten MiB.
func trim() {
	debug.FreeOSMemory()
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return
	}
	defer f.Close()
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	for s := bufio.NewScanner(f); s.Scan(); {
		if from, size, ok := programPages(s.Text(), self); ok {
			// Never written to, so that nothing can be lost; a failure costs memory only.
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, from, size, unix.MADV_DONTNEED)
		}
	}
}

// programPages parses a line of /proc/self/maps (proc(5)). ok says that it is a
// mapping of the file that cannot be written to.
func programPages(line, file string) (from, size uintptr, ok bool) {
	fields := strings.Fields(line)
	if len(fields) < 6 || fields[5] != file || len(fields[1]) != 4 || fields[1][1] != '-' || fields[1][3] != 'p' {
		return 0, 0, false
	}
	var end uintptr
	if n, err := fmt.Sscanf(fields[0], "%x-%x", &from, &end); n != 2 || err != nil || end <= from {
		return 0, 0, false
	}
	return from, end - from, true
}
