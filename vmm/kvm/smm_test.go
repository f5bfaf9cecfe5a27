package kvm

import (
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

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

// newManagedGuest is a guest whose first CPU is in 32-bit mode at code and has a handler
// of SMIs. What it does in System Management Mode goes to the second recorder.
func newManagedGuest(t *testing.T, cpus int, code, handler []byte) (*guest, *recorder, error) {
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
	vm, err := New(Config{Memory: m, CPUs: cpus, IO: g.io, SMM: managed, AllowEmulated: true})
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
	_, _, err := newManagedGuest(t, 1, nil, nil)
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
	g, managed, err := newManagedGuest(t, 1, code([]byte{
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

// Words of memory by which the CPUs of TestSMMRendezvous meet.
const (
	smmStarted  = 0x4ffc // how often the other CPU was started
	smmMoved    = 0x5000 // it has its own SMBASE
	smmArrived  = 0x5004 // how often the other CPU came
	smmRound    = 0x5008 // how often the first CPU came
	smmReleased = 0x500c // up to which round the other CPU may go on
	smmLeaving  = 0x5010 // how often it went on
)

// code16 is code of 16 bits: each operation on a word of memory at a 32-bit address.
func code16(op []byte, at uint32, more ...byte) []byte {
	return append(binary.LittleEndian.AppendUint32(append([]byte{0x67, 0x66}, op...), at), more...)
}

// until16 waits in 16-bit code until a word is what EAX is, as OVMF waits.
func until16(at uint32) []byte {
	return slices.Concat([]byte{0xf3, 0x90}, code16([]byte{0x3b, 0x05}, at), []byte{0x75, 0xf4}) // pause; cmp eax, [at]; jne
}

// TestSMMRendezvous: each SMI that the guest raises reaches all its CPUs, whether halted
// or busy, and those meet in System Management Mode and leave it together, as
// OVMF's do: the first waits for the other, releases it and waits until it goes on.
func TestSMMRendezvous(t *testing.T) {
	if !hasSMM(t) {
		t.Skip("KVM of this host has no System Management Mode")
	}
	const portSMI, apAt, apBase, rounds = 0xb2, 0x8000, 0x4_0000, 50
	inc, load, store := []byte{0xff, 0x05}, []byte{0xa1}, []byte{0xa3}
	move := slices.Concat( // SMBASE in either layout of the saved state
		code16([]byte{0xc7, 0x05}, smiHandler+0x7ef8, 0, 0, apBase>>16, 0),
		code16([]byte{0xc7, 0x05}, smiHandler+0x7f00, 0, 0, apBase>>16, 0),
		code16(inc, smmMoved), []byte{0x0f, 0xaa}) // rsm
	first := slices.Concat(
		code16(load, smmMoved), []byte{0x66, 0x85, 0xc0, 0x75, byte(len(move))}, move, // test eax, eax; jne
		code16(inc, smmRound), code16(load, smmRound), until16(smmArrived),
		code16(store, smmReleased), until16(smmLeaving), []byte{0x0f, 0xaa})
	other := slices.Concat(code16(inc, smmArrived), code16(load, smmArrived), until16(smmReleased), code16(inc, smmLeaving), []byte{0x0f, 0xaa})
	raise := []byte{
		0xbb, rounds, 0, 0, 0, // mov ebx, rounds
		0xe6, portSMI, // out portSMI, al
		0x4b, 0x75, 0xfb, // dec ebx; jne
	}
	until := func(at uint32, n byte) []byte { // cmp dword [at], n; jne
		return slices.Concat([]byte{0x83, 0x3d}, binary.LittleEndian.AppendUint32(nil, at), []byte{n, 0x75, 0xf7})
	}
	startOther := slices.Concat(movMem(apicICR, 0xc4500), movMem(apicICR, 0xc4600|apAt>>12)) // INIT, SIPI
	for name, loop := range map[string][]byte{"halted": {0xf4, 0xeb, 0xfd}, "busy": {0xeb, 0xfe}} {
		t.Run(name, func(t *testing.T) {
			// It is started again when it has its SMBASE: then it has left the first handler.
			ap := append(code16(inc, smmStarted), loop...)
			g, _, err := newManagedGuest(t, 2, code(movMem(apicSVR, 0x1ff),
				startOther, until(smmStarted, 1),
				movMem(apicICR, 0xc4200), until(smmMoved, 1), // SMI to all others
				startOther, until(smmStarted, 2),
				raise, stop), first)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(g.mem.WriteAt(ap, apAt), g.mem.WriteAt(other, apBase+0x8000)); err != nil {
				t.Fatal(err)
			}
			g.io.log = nil
			g.io.hook = func(a access) {
				switch a.addr {
				case portSMI:
					g.SMI()
				case 0x80:
					g.cpus[0].Kick()
				}
			}
			g.background(t, 1)
			start := time.Now()
			runOnce(t, g.start(t, flat32), vcpu.ExitKick)
			t.Logf("%v each", time.Since(start)/rounds)
			for _, at := range []uint32{smmArrived, smmRound, smmReleased, smmLeaving} {
				var b [4]byte
				if err := g.mem.ReadAt(b[:], mem.GPA(at)); err != nil {
					t.Fatal(err)
				}
				if n := binary.LittleEndian.Uint32(b[:]); n != rounds {
					t.Errorf("the word at %#x is %d", at, n)
				}
			}
		})
	}
}
