package guesttest

import (
	"bytes"
	"os"
	"os/exec"
	"testing"
)

// instance is code with something for its operands.
func instance(code []int) []byte {
	b := make([]byte, len(code))
	for i, c := range code {
		if b[i] = byte(c); c == operand {
			b[i] = 0x42
		}
	}
	return b
}

func TestMendQEMU(t *testing.T) {
	nops := bytes.Repeat([]byte{0x90}, 100)
	inject, tpr, virq := instance(injectCode), instance(tprCode), instance(virqCode)
	program := bytes.Join([][]byte{nops, inject, nops, tpr, nops, virq, nops}, nil)
	mended, ok := mendQEMU(program)
	wantTPR := bytes.Join([][]byte{tpr[:8], virq, {0x48, 0x83, 0xc4, 0x08, 0x5b, 0x5d, 0xc3}}, nil)
	want := bytes.Join([][]byte{nops, nop6, inject[6:], nops, wantTPR, nops, virq, nops}, nil)
	if !ok || !bytes.Equal(mended, want) {
		t.Errorf("%v, % x", ok, mended)
	}
	for name, bad := range map[string][]byte{"none": program[:110], "two": append(program, inject...), "no CR8": program[:310], "mended already": mended} {
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
