package kvm

import (
	"encoding/binary"
	"errors"
	"os"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/mem"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// Memory of the tests of System Management Mode beside RAM, and the offset of the
// handler that an SMI enters (Intel SDM vol. 3C §32.5).
const (
	testSMRAM  = 0x30_0000
	testFlash  = 0x40_0000
	smiHandler = 0x3_8000
)

// hasSMM reports whether this host's KVM has System Management Mode.
func hasSMM(t *testing.T) bool {
	t.Helper()
	needKVM(t)
	dev, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	return checkSMM(int(dev.Fd())) == nil
}

// newManagedGuest is a guest whose CPU is in 32-bit mode at code and has a handler
// of SMIs. What it does in System Management Mode goes to the second recorder.
func newManagedGuest(t *testing.T, code, handler []byte) (*guest, *recorder, error) {
	t.Helper()
	m := mem.New()
	for _, r := range []struct {
		name string
		base mem.GPA
		size uint64
		kind mem.Kind
	}{{"ram", 0, testRAM, mem.RAM}, {"smram", testSMRAM, 4096, mem.SMRAM}, {"flash", testFlash, 4096, mem.Flash}} {
		if _, err := m.Add(r.name, r.base, r.size, r.kind); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(m.WriteAt(code, codeAt), m.WriteAt(handler, smiHandler)); err != nil {
		t.Fatal(err)
	}
	managed := &recorder{log: make([]access, 0, 64), next: 100}
	g := &guest{mem: m, io: &recorder{log: make([]access, 0, 64), next: 1}}
	vm, err := New(Config{Memory: m, CPUs: 1, IO: g.io, SMM: managed, AllowEmulated: true})
	if err != nil {
		return nil, nil, errors.Join(err, m.Close())
	}
	g.VM = vm
	t.Cleanup(func() {
		if err := errors.Join(vm.Close(), m.Close()); err != nil {
			t.Error(err)
		}
	})
	return g, managed, nil
}

// TestNoSMM: a host without System Management Mode says so in one sentence.
func TestNoSMM(t *testing.T) {
	if hasSMM(t) {
		t.Skip("this host has it")
	}
	_, _, err := newManagedGuest(t, nil, nil)
	var unusable *UnusableError
	if !errors.As(err, &unusable) || unusable.Cause != NoSMM {
		t.Errorf("error %v", err)
	}
}

// TestSMM: two SMIs that the guest raises at a port enter their handler and return.
// Its memory and the flash are its own while they are hidden, and its accesses
// are told apart.
func TestSMM(t *testing.T) {
	if !hasSMM(t) {
		t.Skip("KVM of this host has no System Management Mode")
	}
	const portSMI, portDone = 0xb2, 0x44
	handler := []byte{
		0x67, 0x66, 0xa1, 0, 0, 0x30, 0, // mov eax, [testSMRAM]
		0x66, 0x40, // inc eax
		0x67, 0x66, 0xa3, 0, 0, 0x30, 0, // mov [testSMRAM], eax
		0x66, 0xe7, portDone, // out portDone, eax
		0x67, 0xa2, 8, 0, 0x40, 0, // mov [testFlash+8], al
		0x67, 0xa0, 9, 0, 0x40, 0, // mov al, [testFlash+9]
		0xe6, portDone, // out portDone, al
		0x0f, 0xaa, // rsm
	}
	g, managed, err := newManagedGuest(t, code([]byte{
		0xb8, 0x55, 0, 0, 0, // mov eax, 0x55
		0xa3, 0, 0, 0x30, 0, // mov [testSMRAM], eax
		0xe6, portSMI, // out portSMI, al
		0xa1, 0, 0, 0x30, 0, // mov eax, [testSMRAM]
		0xe6, portSMI, // out portSMI, al
		0xa1, 9, 0, 0x40, 0, // mov eax, [testFlash+9]
		0xe7, portDone, // out portDone, eax
		0xa2, 8, 0, 0x40, 0, // mov [testFlash+8], al
	}, stop), handler)
	if err != nil {
		t.Fatal(err)
	}
	flash, smram := g.mem.Find(testFlash), g.mem.Find(testSMRAM)
	copy(flash.Bytes()[9:], "CONT")
	if err := g.HideSMRAM(true); err != nil {
		t.Fatal(err)
	}
	g.io.hook = func(a access) {
		switch a.addr {
		case portSMI:
			g.SMI()
		case 0x80:
			g.cpus[0].Kick()
		}
	}
	// The handler's own accesses to the flash leave the CPU after the first SMI.
	shown := true
	managed.hook = func(a access) {
		if a.addr == testFlash+8 && shown {
			shown = false
			if err := g.ShowFlash(flash, false); err != nil {
				t.Error(err)
			}
		}
	}
	runOnce(t, g.start(t, flat32), vcpu.ExitKick)
	cont := uint64(binary.LittleEndian.Uint32([]byte("CONT")))
	g.wantLog(t,
		access{testSMRAM, 4, 0x55, true, true},
		access{portSMI, 1, 0x55, true, false},
		access{testSMRAM, 4, 1, false, true},
		access{portSMI, 1, 1, true, false},
		access{portDone, 4, cont, true, false},
		access{testFlash + 8, 1, 'C', true, true},
	)
	(&guest{io: managed}).wantLog(t,
		access{portDone, 4, 1, true, false},
		access{testFlash + 8, 1, 1, true, true},
		access{testFlash + 9, 1, 100, false, true},
		access{portDone, 1, 100, true, false},
		access{portDone, 4, 2, true, false},
		access{testFlash + 8, 1, 2, true, true},
		access{testFlash + 9, 1, 101, false, true},
		access{portDone, 1, 101, true, false},
	)
	if n := binary.LittleEndian.Uint32(smram.Bytes()); n != 2 {
		t.Errorf("the hidden memory holds %#x", n)
	}
	if err := errors.Join(g.HideSMRAM(true), g.HideSMRAM(false)); err != nil {
		t.Error(err)
	}
}
