package virtiopci

import (
	"fmt"
	"io"
)

// Describe writes the device's status and queues for people.
func (f *Function) Describe(w io.Writer) {
	c := f.core
	fmt.Fprintf(w, "%s: status %#02x, features %08x%08x of %016x\n", f.Name(), uint8(c.Status()), c.DriverFeatures(1), c.DriverFeatures(0), uint64(c.Offered()))
	for i := range uint32(c.Rings()) {
		if r, ok := c.Ring(i); ok && r.Enabled {
			fmt.Fprintf(w, "  queue %d: %d of %d entries, descriptors %#x, driver %#x, device %#x\n", i, r.Size, r.Max, uint64(r.Desc), uint64(r.Avail), uint64(r.Used))
		}
	}
}
