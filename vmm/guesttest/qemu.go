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

// tprCode is the case of CR8 in QEMU's helper_write_crN, where a nested guest lowers
// its task priority while a virtual interrupt waits: it leaves the function by the call
// of cpu_interrupt(cs, CPU_INTERRUPT_VIRQ).
var tprCode = []int{
	0x85, 0xd2, 0x0f, 0x84, operand, operand, operand, operand,
	0x48, 0x83, 0xc4, 0x08, // add $8, %rsp
	0xbe, 0x00, 0x01, 0x00, 0x00, // mov $CPU_INTERRUPT_VIRQ, %esi
	0x5b, 0x5d, // pop %rbx; pop %rbp
	0xe9, operand, operand, operand, operand,
	0x0f, // of a nop
}

// virqCode is, in helper_vmrun, cs->interrupt_request |= CPU_INTERRUPT_VIRQ, with env
// in %rbx.
var virqCode = []int{0x81, 0x8b, operand, operand, 0xff, 0xff, 0x00, 0x01, 0x00, 0x00}

// find is where the code is in the program, exactly once, or -1.
func find(program []byte, code []int) int {
	found := -1
	for i := range len(program) - len(code) + 1 {
		if !isCode(program[i:], code) {
			continue
		}
		if found >= 0 {
			return -1
		}
		found = i
	}
	return found
}

// mendQEMU returns a copy of the program without two bugs of its nested guests, and
// whether it knows their code.
//
// VMRUN with an interrupt to inject delivers it at once, but leaves its number
// in exception_index as well, as if it were still to be delivered. When TCG's
// loop is left before the next exit of the nested guest, for instance by a timer, it
// finds the number and delivers the interrupt a second time, in the middle of
// its own handler: that guest's kernel hangs or crashes. QEMU 7.2 to 11 have this. The
// copy lacks the store of exception_index in injectCode.
//
// A write to CR8 calls cpu_interrupt without the lock that it asserts, and QEMU aborts
// when KVM waits for an interrupt window meanwhile, as with OVMF, whose handlers
// restore CR8. The copy sets the bit as VMRUN does.
func mendQEMU(program []byte) ([]byte, bool) {
	inject, tpr, virq := find(program, injectCode), find(program, tprCode), find(program, virqCode)
	if inject < 0 || tpr < 0 || virq < 0 {
		return nil, false
	}
	mended := bytes.Clone(program)
	copy(mended[inject:], nop6)
	at := mended[tpr+8:]
	n := copy(at, program[virq:virq+len(virqCode)])
	copy(at[n:], []byte{0x48, 0x83, 0xc4, 0x08, 0x5b, 0x5d, 0xc3}) // as there; ret
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
