package disk

import (
	"testing"
	"unsafe"
)

// linux/io_uring.h.
func TestRingLayout(t *testing.T) {
	for name, c := range map[string][2]uintptr{
		"sqe": {unsafe.Sizeof(sqe{}), 64}, "cqe": {unsafe.Sizeof(cqe{}), 16}, "params": {unsafe.Sizeof(ringParams{}), 120},
		"sqe.user_data": {unsafe.Offsetof(sqe{}.userData), 32}, "params.sq_off": {unsafe.Offsetof(ringParams{}.sq), 40},
		"params.cq_off": {unsafe.Offsetof(ringParams{}.cq), 80},
	} {
		if c[0] != c[1] {
			t.Errorf("%s is at or of %d bytes, want %d", name, c[0], c[1])
		}
	}
}
