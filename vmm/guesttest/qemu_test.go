package guesttest

import (
	"bytes"
	"os"
	"os/exec"
	"testing"
)

func TestMendQEMU(t *testing.T) {
	code := make([]byte, len(injectCode))
	for i, c := range injectCode {
		if code[i] = byte(c); c == operand {
			code[i] = 0x42
		}
	}
	program := append(append(bytes.Repeat([]byte{0x90}, 100), code...), bytes.Repeat([]byte{0x90}, 100)...)
	mended, ok := mendQEMU(program)
	if !ok || !bytes.Equal(mended[100:106], nop6) || !bytes.Equal(mended[106:], program[106:]) || !bytes.Equal(mended[:100], program[:100]) {
		t.Errorf("%v, % x", ok, mended)
	}
	for name, bad := range map[string][]byte{"none": program[:110], "two": append(program, code...), "mended already": mended} {
		if _, ok := mendQEMU(append(bad, 0)); ok {
			t.Errorf("%s: mended", name)
		}
	}
}

// TestMendInstalledQEMU: the QEMU of the distribution that CI has is known.
func TestMendInstalledQEMU(t *testing.T) {
	path, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("QEMU is not installed")
	}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := mendQEMU(program); !ok {
		t.Skip("this QEMU is built in another way: boots in the testbed may hang and are tried again")
	}
}
