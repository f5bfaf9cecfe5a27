package fs

import (
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
)

// TestPosix runs go-fuse's POSIX suite on a mount of this machine's kernel.
func TestPosix(t *testing.T) {
	needRoot(t)
	for _, c := range []struct {
		name string
		edit func(*Config)
	}{
		{"auto", func(c *Config) { c.Locks = true }},
		{"always", func(c *Config) { c.Cache = CacheAlways }},
		{"never", func(c *Config) { c.Cache = CacheNever }},
		{"writeback", func(c *Config) { c.Writeback, c.ACL = true, true }},
	} {
		t.Run(c.name, func(t *testing.T) {
			for name, f := range posixtest.All {
				// It expects fcntl locks to conflict with flock locks; the suite
				// itself leaves it out for a plain directory.
				if name == "FcntlFlockLocksFile" {
					continue
				}
				t.Run(name, func(t *testing.T) {
					mnt, _ := mounted(t, c.edit)
					f(t, mnt)
				})
			}
		})
	}
}
