package guesttest

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// qemuData are the folders of Debian's QEMU that a copy of the program elsewhere
// does not find by itself.
var (
	qemuData    = []string{"/usr/share/qemu", "/usr/share/seabios"}
	qemuModules = "/usr/lib/x86_64-linux-gnu/qemu"
)

// injectCode is what compilers make of the case SVM_EVTINJ_TYPE_INTR in QEMU's
// helper_vmrun (target/i386/tcg/sysemu/svm_helper.c): the stores of
// exception_index, exception_is_int = 0 and exception_next_eip = -1, the check
// of a log flag, and the last argument of the call that delivers the interrupt.
// operand stands for an operand.
var injectCode = []int{
	0x89, operand, operand, operand, 0xff, 0xff,
	0xc7, operand, operand, operand, operand, operand, 0, 0, 0, 0,
	0x48, 0xc7, operand, operand, operand, operand, operand, 0xff, 0xff, 0xff, 0xff,
	0xf6, 0x05, operand, operand, operand, operand, 0x02, 0x0f, 0x85, operand, operand, operand, operand,
	0xba, 1, 0, 0, 0,
}

const operand = -1

// nop6 is one instruction of six bytes that does nothing (Intel SDM vol. 2B, NOP).
var nop6 = []byte{0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00}

// mendQEMU returns a copy of the program without the store of exception_index
// in injectCode, and whether that code is there exactly once.
//
// VMRUN with an interrupt to inject delivers it at once, but leaves its number
// in exception_index as well, as if it were still to be delivered. When TCG's
// loop is left before the next exit of the nested guest, for instance by a timer, it
// finds the number and delivers the interrupt a second time, in the middle of
// its own handler: that guest's kernel hangs or crashes. QEMU 7.2 to 11 have this.
func mendQEMU(program []byte) ([]byte, bool) {
	found := -1
	for i := range len(program) - len(injectCode) {
		if !isCode(program[i:], injectCode) {
			continue
		}
		if found >= 0 {
			return nil, false
		}
		found = i
	}
	if found < 0 {
		return nil, false
	}
	mended := bytes.Clone(program)
	copy(mended[found:], nop6)
	return mended, true
}

// isCode reports whether b begins with the code.
func isCode(b []byte, code []int) bool {
	for i, c := range code {
		if c != operand && int(b[i]) != c {
			return false
		}
	}
	return true
}

// qemuProgram is a QEMU to run.
type qemuProgram struct {
	path string
	args []string // to find its files
	env  []string
	// mended says that nested guests get an interrupt once.
	mended bool
}

// nestedQEMU returns the QEMU of this machine, mended if that is possible.
func nestedQEMU(t testing.TB) qemuProgram {
	t.Helper()
	path := Tool(t, "qemu-system-x86_64")
	plain := qemuProgram{path: path, env: os.Environ()}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	mended, ok := mendQEMU(program)
	if !ok {
		t.Logf("testbed: %s is not a build whose SVM can be mended: nested guests may hang", path)
		return plain
	}
	q := qemuProgram{path: filepath.Join(t.TempDir(), filepath.Base(path)), env: append(plain.env, "QEMU_MODULE_DIR="+qemuModules), mended: true}
	if err := os.WriteFile(q.path, mended, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range qemuData {
		q.args = append(q.args, "-L", dir)
	}
	return q
}
