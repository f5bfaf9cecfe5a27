package fwcfg

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

const ramSize = 1 << 20

// machine is a device with RAM, reached as a guest does.
type machine struct {
	testing.TB
	mem *mem.Memory
	*Device
}

func newMachine(t testing.TB) *machine {
	m := mem.New()
	t.Cleanup(func() { _ = m.Close() })
	if _, err := m.Add("RAM", 0, ramSize, mem.RAM); err != nil {
		t.Fatal(err)
	}
	return &machine{t, m, New(m)}
}

func (m *machine) choose(sel uint16) { m.Ports().Write(0, 2, uint64(sel)) }

func (m *machine) read(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(m.Ports().Read(1, 1))
	}
	return string(b)
}

// dma runs a command at 0x1000 by the two halves of the address register, and
// returns its control field.
func (m *machine) dma(control, length uint32, address uint64) uint32 {
	b := binary.BigEndian.AppendUint32(nil, control)
	b = binary.BigEndian.AppendUint32(b, length)
	b = binary.BigEndian.AppendUint64(b, address)
	if err := m.mem.WriteAt(b, 0x1000); err != nil {
		m.Fatal(err)
	}
	m.Ports().Write(4, 4, 0)
	m.Ports().Write(8, 4, swap(0x1000, 4))
	if err := m.mem.ReadAt(b[:4], 0x1000); err != nil {
		m.Fatal(err)
	}
	return binary.BigEndian.Uint32(b)
}

func (m *machine) ram(at mem.GPA, n int) string {
	b := make([]byte, n)
	if err := m.mem.ReadAt(b, at); err != nil {
		m.Fatal(err)
	}
	return string(b)
}

func TestItems(t *testing.T) {
	m := newMachine(t)
	m.AddInt(BootCPUs, 2, 0x1234)
	m.choose(Signature)
	if got := m.read(6); got != "QEMU\x00\x00" {
		t.Errorf("signature %q", got)
	}
	m.choose(Revision)
	if got := m.read(4); got != "\x03\x00\x00\x00" {
		t.Errorf("revision %q", got)
	}
	m.choose(BootCPUs)
	if got := m.read(3); got != "\x34\x12\x00" {
		t.Errorf("CPUs %q", got)
	}
	m.choose(0xbeef)
	if got := m.read(2); got != "\x00\x00" {
		t.Errorf("no item %q", got)
	}
	if got := m.Ports().Read(4, 8); got != swap(dmaSignature, 8) {
		t.Errorf("DMA register %#x", got)
	}
	if got := m.Ports().Read(8, 4); got != uint64(binary.LittleEndian.Uint32([]byte(" CFG"))) {
		t.Errorf("low half of the DMA register %#x", got)
	}
}

func TestDirectory(t *testing.T) {
	m := newMachine(t)
	calls := 0
	var written []byte
	for _, err := range []error{
		m.AddFile("opt/z", []byte("last")),
		m.AddBuilt("etc/built", 6, func() []byte { calls++; return []byte{byte('0' + calls)} }),
		m.AddWritable("etc/write", 8, func(off int64, p []byte) { written = append([]byte{byte(off)}, p...) }),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	m.choose(fileDirectory)
	if n := m.read(4); n != "\x00\x00\x00\x03" {
		t.Fatalf("%q files", n)
	}
	selectors := map[string]uint16{}
	last := ""
	for range 3 {
		e := m.read(64)
		name := strings.TrimRight(e[8:], "\x00")
		selectors[name] = binary.BigEndian.Uint16([]byte(e[4:]))
		if name <= last {
			t.Errorf("%s behind %s", name, last)
		}
		last = name
	}
	for i := 1; i <= 2; i++ {
		m.choose(selectors["etc/built"])
		if got := m.read(7); got != string(byte('0'+i))+"\x00\x00\x00\x00\x00\x00" {
			t.Errorf("built %d: %q", i, got)
		}
	}
	if err := m.mem.WriteAt([]byte("abcd"), 0x2000); err != nil {
		t.Fatal(err)
	}
	sel := uint32(selectors["etc/write"])<<16 | dmaSelect
	if c := m.dma(sel|dmaSkip, 3, 0); c != 0 {
		t.Errorf("skip: %#x", c)
	}
	if c := m.dma(dmaWrite, 4, 0x2000); c != 0 || string(written) != "\x03abcd" {
		t.Errorf("write: %#x, %q", c, written)
	}
	if c := m.dma(dmaWrite, 4, 0x2000); c != dmaError {
		t.Errorf("write behind the end: %#x", c)
	}
	m.choose(uint16(selectors["etc/write"]))
	if got := m.read(8); got != "\x00\x00\x00abcd\x00" {
		t.Errorf("what was written reads %q", got)
	}
	if c := m.dma(uint32(selectors["opt/z"])<<16|dmaSelect|dmaWrite, 1, 0x2000); c != dmaError {
		t.Errorf("write to a read-only file: %#x", c)
	}
	if err := m.AddFile("opt/z", nil); err == nil {
		t.Error("two files of one name")
	}
	if err := m.AddFile(strings.Repeat("n", 56), nil); err == nil {
		t.Error("a name of 56 bytes")
	}
}

func TestDMA(t *testing.T) {
	m := newMachine(t)
	content := bytes.Repeat([]byte("0123456789abcdef"), 1000)
	m.Add(KernelData, content)
	if c := m.dma(KernelData<<16|dmaSelect|dmaRead, 10, 0x3000); c != 0 || m.ram(0x3000, 11) != "0123456789\x00" {
		t.Errorf("read: %#x, %q", c, m.ram(0x3000, 11))
	}
	// The port goes on where DMA stopped.
	if got := m.read(3); got != "abc" {
		t.Errorf("port after DMA: %q", got)
	}
	if c := m.dma(dmaSkip, 15987, 0); c != 0 || m.read(2) != "\x00\x00" {
		t.Errorf("skip to the end: %#x", c)
	}
	if err := m.mem.WriteAt(bytes.Repeat([]byte{1}, 64), 0x4000); err != nil {
		t.Fatal(err)
	}
	if c := m.dma(KernelData<<16|dmaSelect|dmaRead, 16064, 0x3000); c != 0 || m.ram(0x3000, 16064) != string(content)+strings.Repeat("\x00", 64) {
		t.Errorf("read across the end: %#x", c)
	}
}

// hostile-guest.md row 26: DMA outside RAM, across its end, wrapping, longer
// than any file, into its own command; commands outside RAM.
func TestHostile(t *testing.T) {
	m := newMachine(t)
	m.Add(KernelData, []byte("kernel"))
	const read = KernelData<<16 | dmaSelect | dmaRead
	for _, c := range []struct {
		length  uint32
		address uint64
	}{{1, ramSize}, {2, ramSize - 1}, {0xffff_ffff, 0}, {0x100, ^uint64(0) - 5}, {1, 1 << 63}, {0xffff_ffff, 0xffff_ffff}} {
		if got := m.dma(read, c.length, c.address); got != dmaError {
			t.Errorf("%d bytes to %#x: %#x", c.length, c.address, got)
		}
	}
	if got := m.dma(read, 16, 0x1000); got != 0 {
		t.Errorf("into the command: %#x", got)
	}
	for range 10 {
		if got := m.dma(dmaSkip, 0xffff_ffff, 0); got != 0 {
			t.Errorf("skip: %#x", got)
		}
	}
	if m.read(1) != "\x00" {
		t.Error("there is something at the end of all")
	}
	for _, at := range []uint64{ramSize - 8, ramSize, ^uint64(0), 1 << 52} {
		m.Ports().Write(4, 8, swap(at, 8))
	}
	for _, size := range []int{1, 2, 4, 8} {
		for off := uint64(0); off+uint64(size) <= PortsSize; off++ {
			m.Ports().Write(off, size, 0)
			m.Ports().Read(off, size)
		}
	}
}

func TestAllocations(t *testing.T) {
	m := newMachine(t)
	m.Add(KernelData, bytes.Repeat([]byte("x"), 100))
	p := m.Ports()
	if n := testing.AllocsPerRun(100, func() {
		p.Write(0, 2, KernelData)
		p.Read(1, 1)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzPorts: any access to the ports, with any command in memory.
func FuzzPorts(f *testing.F) {
	f.Add([]byte{0, 2, 8, 0, 1, 1, 0, 0}, make([]byte, 32))
	f.Add([]byte{8, 4, 0, 0}, []byte{0, 8, 0, 10, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0x20, 0})
	f.Fuzz(func(t *testing.T, ops, ram []byte) {
		m := newMachine(t)
		m.Add(KernelSize, []byte("content of an item"))
		_ = m.AddWritable("etc/w", 16, func(int64, []byte) {})
		if len(ram) > ramSize || m.mem.WriteAt(ram, 0) != nil {
			return
		}
		for ; len(ops) >= 4; ops = ops[4:] {
			size := 1 << (ops[1] & 3)
			off := uint64(ops[0]) % (PortsSize - uint64(size) + 1)
			m.Ports().Write(off, size, uint64(ops[2])|uint64(ops[3])<<8|uint64(ops[2])<<24|uint64(ops[3])<<56)
			m.Ports().Read(off, size)
		}
	})
}
