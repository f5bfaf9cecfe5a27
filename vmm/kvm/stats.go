package kvm

import (
	"bytes"
	"encoding/binary"
	"syscall"

	"golang.org/x/sys/unix"
)

// Layout of a statistics file (KVM API §4.133): a header, descriptors of
// statsDescSize and a name each, values of 64 bits.
const (
	statsHeaderSize = 24
	statsDescSize   = 16
	mostStats       = 1024 // sanity: Linux 6.12 has 60 of a CPU
)

// faultCounters say how often a CPU faulted on guest memory, and how KVM dealt
// with it. Linux has all of them since 5.19.
var faultCounters = [...]string{"pf_taken", "pf_fixed", "pf_emulate", "pf_spurious"}

// faultStats reads the counters of a CPU. The zero value opens them when they
// are first asked for.
type faultStats struct {
	tried bool
	fd    int // 0: there are none
	at    [len(faultCounters)]int64
}

// UnresolvedFaults counts the CPU's faults on guest memory that KVM only tried
// again, from the CPU's start on. It rises without end while the CPU wants a
// page that the host cannot provide but KVM waits for. ok is false where KVM does
// not count.
func (c *VCPU) UnresolvedFaults() (n uint64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return 0, false
	}
	s := &c.stats
	if !s.tried {
		s.tried = true
		s.open(c.fd)
	}
	if s.fd == 0 {
		return 0, false
	}
	var v [len(faultCounters)]uint64
	for i := range v {
		var b [8]byte
		if n, err := unix.Pread(s.fd, b[:], s.at[i]); n != len(b) || err != nil {
			return 0, false
		}
		v[i] = binary.NativeEndian.Uint64(b[:])
	}
	return v[0] - min(v[0], v[1]+v[2]+v[3]), true
}

// open finds the counters in the file of a CPU's statistics.
func (s *faultStats) open(cpu int) {
	syscall.ForkLock.RLock() // the kernel cannot be asked for O_CLOEXEC
	fd, err := ioctl(cpu, KVM_GET_STATS_FD, 0)
	if err == nil {
		unix.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return
	}
	if s.find(fd) {
		s.fd = fd
		return
	}
	_ = unix.Close(fd)
}

// find reports whether all counters are there.
func (s *faultStats) find(fd int) bool {
	var head [statsHeaderSize]byte
	if n, err := unix.Pread(fd, head[:], 0); n != len(head) || err != nil {
		return false
	}
	word := func(i int) uint32 { return binary.NativeEndian.Uint32(head[4*i:]) }
	nameSize, count, descriptors, data := word(1), word(2), word(4), word(5)
	if count > mostStats || nameSize > 256 {
		return false
	}
	each := statsDescSize + int(nameSize)
	list := make([]byte, int(count)*each)
	if n, err := unix.Pread(fd, list, int64(descriptors)); n != len(list) || err != nil {
		return false
	}
	found := 0
	for ; len(list) > 0; list = list[each:] {
		name, _, _ := bytes.Cut(list[statsDescSize:each], []byte{0})
		for i, want := range faultCounters {
			if string(name) == want {
				s.at[i] = int64(data) + int64(binary.NativeEndian.Uint32(list[8:]))
				found++
			}
		}
	}
	return found == len(faultCounters)
}

func (s *faultStats) close() {
	if s.fd != 0 {
		_ = unix.Close(s.fd)
		s.fd = 0
	}
}
