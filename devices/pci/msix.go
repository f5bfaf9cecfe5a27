package pci

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// MSIX is the MSI-X machinery of a function (PCI 3.0 §6.8.2): a vector table
// and a pending bit array, which live in a BAR, and a capability.
type MSIX struct {
	control atomic.Uint32 // message control, enable and function mask only
	vectors []vector
}

// vector is a table entry with its state.
type vector struct {
	mu      sync.Mutex // guards the rest; held while the message is sent
	entry   [msixEntrySize]byte
	pending bool
	stale   bool // entry differs from what msi was routed to
	routed  bool
	msi     bus.MSI
}

// NewMSIX adds MSI-X with n vectors, 1 to 2048, to the function. table and pba
// are the offsets of the two arrays in BAR number bar, multiples of 8; the
// BAR's device passes accesses there to [MSIX.Table] and [MSIX.PBA].
func (f *Function) NewMSIX(n, bar int, table, pba uint32, wires bus.Wires) (*MSIX, error) {
	if n < 1 || n > msixMaxVectors || table%8 != 0 || pba%8 != 0 {
		return nil, fmt.Errorf("pci %s: %d MSI-X vectors at %#x and %#x are not possible", f.name, n, table, pba)
	}
	m := &MSIX{vectors: make([]vector, n)}
	for i := range m.vectors {
		msi, err := wires.NewMSI()
		if err != nil {
			m.Close()
			return nil, fmt.Errorf("pci %s: MSI-X vector %d: %w", f.name, i, err)
		}
		m.vectors[i].msi = msi
	}
	m.reset()
	body := make([]byte, 10)
	binary.LittleEndian.PutUint16(body, uint16(n-1))
	binary.LittleEndian.PutUint32(body[2:], table|uint32(bar))
	binary.LittleEndian.PutUint32(body[6:], pba|uint32(bar))
	_, err := f.AddCapability(Capability{
		ID: CapMSIX, Body: body, Writable: []byte{0, (msixEnable | msixMaskAll) >> 8},
		Written: func(body []byte, off, _ int) {
			if off < 2 {
				m.setControl(binary.LittleEndian.Uint16(body))
			}
		},
	})
	if err != nil {
		m.Close()
		return nil, err
	}
	f.msix = m
	return m, nil
}

// Close frees the message sources. No Trigger may follow.
func (m *MSIX) Close() {
	for i := range m.vectors {
		if msi := m.vectors[i].msi; msi != nil {
			_ = msi.Close()
		}
	}
}

// Vectors is the size of the table.
func (m *MSIX) Vectors() int { return len(m.vectors) }

// Enabled reports whether the driver uses MSI-X.
func (m *MSIX) Enabled() bool { return m.control.Load()&msixEnable != 0 }

// Describe writes the vectors that the driver uses, for people.
func (m *MSIX) Describe(w io.Writer) {
	le := binary.LittleEndian
	for i := range m.vectors {
		v := &m.vectors[i]
		v.mu.Lock()
		entry, masked, pending := v.entry, m.masked(v), v.pending
		v.mu.Unlock()
		if entry == ([msixEntrySize]byte{msixEntryCtrl: msixCtrlMasked}) {
			continue
		}
		fmt.Fprintf(w, "  vector %d: address %#x, data %#x, masked %t, pending %t\n", i, le.Uint64(entry[:]), le.Uint32(entry[8:]), masked, pending)
	}
}

// FD is the eventfd of vector i for use by the kernel (vhost), or -1. Such
// interrupts do not know of masks.
func (m *MSIX) FD(i int) int {
	if i < 0 || i >= len(m.vectors) {
		return -1
	}
	return m.vectors[i].msi.FD()
}

// reset masks and clears all vectors and disables MSI-X (§6.8.2.9).
func (m *MSIX) reset() {
	m.control.Store(0)
	for i := range m.vectors {
		v := &m.vectors[i]
		v.mu.Lock()
		v.entry = [msixEntrySize]byte{msixEntryCtrl: msixCtrlMasked}
		v.pending, v.stale = false, true
		v.mu.Unlock()
	}
}

func (m *MSIX) setControl(c uint16) {
	c &= msixEnable | msixMaskAll
	if m.control.Swap(uint32(c)) == uint32(c) {
		return
	}
	for i := range m.vectors {
		v := &m.vectors[i]
		v.mu.Lock()
		m.refresh(v)
		v.mu.Unlock()
	}
}

// masked reports whether v's message must be held back.
//
// Preconditions: v.mu is held.
func (m *MSIX) masked(v *vector) bool {
	return m.control.Load() != msixEnable || v.entry[msixEntryCtrl]&msixCtrlMasked != 0
}

// refresh routes an unmasked vector and sends what is pending.
//
// Preconditions: v.mu is held.
func (m *MSIX) refresh(v *vector) {
	if m.masked(v) {
		return
	}
	if v.stale {
		v.stale = false
		v.routed = v.route() == nil
	}
	if v.pending {
		v.pending = false
		v.send()
	}
}

var errMessage = errors.New("message address is not the local APICs'")

// route hands the message to the engine. A message that is no interrupt, to an
// address outside 0xFEE00000-0xFEEFFFFF (Intel SDM vol. 3A §11.11.1), would be
// a write to memory or to another device; it is dropped.
func (v *vector) route() error {
	addr := binary.LittleEndian.Uint64(v.entry[msixEntryAddrLo:])
	if addr>>20 != 0xfee {
		return errMessage
	}
	return v.msi.Route(addr, binary.LittleEndian.Uint32(v.entry[msixEntryData:]))
}

func (v *vector) send() {
	if v.routed {
		v.msi.Trigger()
	}
}

// Trigger sends the message of vector i, or sets its pending bit while it is
// masked. Vectors that do not exist, and all while MSI-X is disabled, are
// ignored.
func (m *MSIX) Trigger(i uint16) {
	if int(i) >= len(m.vectors) || m.control.Load()&msixEnable == 0 {
		return
	}
	v := &m.vectors[i]
	v.mu.Lock()
	if m.masked(v) {
		v.pending = true
	} else {
		v.send()
	}
	v.mu.Unlock()
}

// Table is the vector table, 16 bytes a vector. Accesses of any size and
// alignment work byte by byte, although drivers may only use aligned dwords
// and qwords (§6.8.2).
func (m *MSIX) Table() bus.Device { return msixTable{m} }

type msixTable struct{ m *MSIX }

// TableSize is the size of the table in bytes.
func (m *MSIX) TableSize() uint64 { return uint64(len(m.vectors)) * msixEntrySize }

func (t msixTable) Read(off uint64, size int) uint64 {
	r := uint64(0)
	for i := range uint64(size) {
		n := (off + i) / msixEntrySize
		if n >= uint64(len(t.m.vectors)) {
			continue // reserved space reads as zero
		}
		v := &t.m.vectors[n]
		v.mu.Lock()
		r |= uint64(v.entry[(off+i)%msixEntrySize]) << (8 * i)
		v.mu.Unlock()
	}
	return r
}

func (t msixTable) Write(off uint64, size int, val uint64) {
	for n := off / msixEntrySize; n <= (off+uint64(size)-1)/msixEntrySize && n < uint64(len(t.m.vectors)); n++ {
		t.m.writeEntry(&t.m.vectors[n], int64(off)-int64(n*msixEntrySize), size, val)
	}
}

// writeEntry writes the part of a size-byte value at off that lies in v's
// entry; off may be negative.
func (m *MSIX) writeEntry(v *vector, off int64, size int, val uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for i := range int64(size) {
		at := off + i
		if at < 0 || at >= msixEntrySize {
			continue
		}
		b := byte(val >> (8 * i))
		switch {
		case at == msixEntryCtrl:
			b &= msixCtrlMasked
		case at > msixEntryCtrl:
			b = 0 // reserved bits of vector control (§6.8.2.9)
		}
		if at < msixEntryCtrl && v.entry[at] != b {
			v.stale = true
		}
		v.entry[at] = b
	}
	m.refresh(v)
}

// PBA is the pending bit array, which is read-only.
func (m *MSIX) PBA() bus.Device { return msixPBA{m} }

// PBASize is the size of the pending bit array in bytes: whole qwords.
func (m *MSIX) PBASize() uint64 { return uint64(len(m.vectors)+63) / 64 * 8 }

type msixPBA struct{ m *MSIX }

func (p msixPBA) Read(off uint64, size int) uint64 {
	r := uint64(0)
	for bit := range uint64(size) * 8 {
		n := off*8 + bit
		if n >= uint64(len(p.m.vectors)) {
			break
		}
		v := &p.m.vectors[n]
		v.mu.Lock()
		if v.pending {
			r |= 1 << bit
		}
		v.mu.Unlock()
	}
	return r
}

func (msixPBA) Write(uint64, int, uint64) {}
