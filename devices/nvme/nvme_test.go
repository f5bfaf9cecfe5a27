package nvme

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/disk"
	"github.com/gvmspawn/gvmspawn/vmm/disk/disktest"
	"github.com/gvmspawn/gvmspawn/vmm/disk/fakedisk"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// §3.1: properties, as a driver reads them before anything else.
func TestProperties(t *testing.T) {
	r := newRig(t, newRAM(1<<20))
	if v := r.MMIORead(r.bar, 8); v != 255|1<<16|60<<24|1<<37 {
		t.Errorf("CAP %#x", v)
	}
	if r.read(regVS) != 0x10400 || r.read(regCSTS) != 0 || r.read(regCC) != 0 {
		t.Errorf("VS %#x, CSTS %#x", r.read(regVS), r.read(regCSTS))
	}
	if v := r.MMIORead(r.bar+regVS+1, 2); v != 0x0104 {
		t.Errorf("part of VS %#x", v)
	}
	if v := r.c.ReadConfig(8, 4); v != 0x010802_01 {
		t.Errorf("class %#x", v)
	}
}

// §3.1.5: a configuration that the controller does not have is fatal, until reset.
func TestEnable(t *testing.T) {
	for name, c := range map[string]struct {
		cc, aqa  uint32
		asq, acq uint64
	}{
		"command set":      {ccGood | 7<<4, 0x1f001f, 0x10000, 0x14000},
		"page size":        {ccGood | 1<<7, 0x1f001f, 0x10000, 0x14000},
		"arbitration":      {ccGood | 1<<11, 0x1f001f, 0x10000, 0x14000},
		"queue of one":     {ccGood, 0, 0x10000, 0x14000},
		"no memory":        {ccGood, 0x1f001f, 1 << 40, 0x14000},
		"end of memory":    {ccGood, 0xfff0fff, 0x10000, ramSize - pageSize},
		"addresses wrap":   {ccGood, 0x1f001f, 0x10000, ^uint64(0)},
		"submission queue": {ccGood, 0x1f001f, ramSize, 0x14000},
	} {
		r := newRig(t, newRAM(1<<20))
		r.write(regAQA, c.aqa)
		r.write64(regASQ, c.asq)
		r.write64(regACQ, c.acq)
		r.write(regCC, c.cc)
		if r.read(regCSTS)&(cstsReady|cstsFatal) != cstsFatal {
			t.Errorf("%s: CSTS %#x", name, r.read(regCSTS))
		}
		r.disable()
		r.enable()
	}
}

// §5.15: Identify.
func TestIdentify(t *testing.T) {
	r := newRig(t, newRAM(1<<20)).up(16)
	le := binary.LittleEndian
	identify := func(cns uint8, ns uint32) ([]byte, status) {
		c := r.admin(entry{op: adminIdentify, ns: ns, prp1: dataAt, d10: uint32(cns)})
		return r.bytes(dataAt, pageSize), c.status
	}
	b, _ := identify(cnsController, 0)
	if s := string(b[4:24]); s != "disk.raw            " || !strings.HasPrefix(string(b[24:64]), "gvmspawn") || b[77] != 8 || le.Uint32(b[516:]) != 1 ||
		b[512] != 0x66 || b[513] != 0x44 || le.Uint16(b[520:]) != 12 || b[525] != 7 || le.Uint16(b[256:]) != 0x100 {
		t.Errorf("serial number %q, %x", s, b[:600])
	}
	if s, _, _ := strings.Cut(string(b[768:1024]), "\x00"); s != "nqn.2014-08.org.nvmexpress:uuid:01020300-0000-0000-0000-000000000000" {
		t.Errorf("SUBNQN %q", s)
	}
	b, _ = identify(cnsNamespace, 1)
	if le.Uint64(b) != 2048 || le.Uint32(b[128:]) != 9<<16 || b[99] != 0 || b[25] != 0 {
		t.Errorf("namespace %x", b[:160])
	}
	if b, _ = identify(cnsActive, 0); le.Uint32(b) != 1 || le.Uint32(b[4:]) != 0 {
		t.Error("active namespaces")
	}
	if b, _ = identify(cnsActive, 1); le.Uint32(b) != 0 {
		t.Error("active namespaces after 1")
	}
	if b, _ = identify(cnsDescriptors, 1); b[0] != 3 || b[1] != 16 || b[4] != 1 || b[20] != 0 {
		t.Errorf("descriptors %x", b[:24])
	}
	for _, c := range []struct {
		cns  uint8
		ns   uint32
		want status
	}{{cnsNamespace, 2, statusInvalidNS}, {cnsNamespace, 0, statusInvalidNS}, {cnsActive, broadcast, statusInvalidNS}, {cnsDescriptors, 7, statusInvalidNS}, {0x1c, 0, statusInvalidField}} {
		if _, st := identify(c.cns, c.ns); st != c.want {
			t.Errorf("CNS %d of namespace %#x: %#x, want %#x", c.cns, c.ns, st, c.want)
		}
	}
	r = newRig(t, &fakedisk.RAM{Data: make([]byte, 1<<20), NoWrites: true, BlockSize: 4096}).up(16)
	r.admin(entry{op: adminIdentify, ns: 1, prp1: dataAt})
	if b = r.bytes(dataAt, pageSize); le.Uint64(b) != 256 || le.Uint32(b[128:]) != 12<<16 || b[99] != 1 {
		t.Errorf("read-only disk of 4 KiB blocks: %x", b[:160])
	}
}

// prps makes PRP entries for n bytes at scattered pages, the first at an offset,
// with a list of lists when the list begins near the end of its page. It
// returns the addresses of the bytes.
func (r *rig) prps(rnd *rand.Rand, n int) (prp1, prp2 uint64, at []uint64) {
	used := map[uint64]bool{}
	page := func() uint64 {
		for {
			if p := dataAt + uint64(rnd.IntN(4096))*2*pageSize; !used[p] {
				used[p] = true
				return p
			}
		}
	}
	off := uint64(rnd.IntN(1024)) * 4
	prp1 = page() + off
	var pages []uint64
	add := func(base, k uint64) {
		for i := range k {
			at = append(at, base+i)
		}
	}
	first := min(uint64(n), pageSize-off)
	add(prp1, first)
	for left := uint64(n) - first; left > 0; {
		p := page()
		k := min(left, pageSize)
		add(p, k)
		pages = append(pages, p)
		left -= k
	}
	switch len(pages) {
	case 0:
	case 1:
		prp2 = pages[0]
	default:
		slot := uint64(rnd.IntN(512))
		if rnd.IntN(2) == 0 {
			slot = 511 - uint64(rnd.IntN(3))
		}
		prp2 = listAt + slot*8
		for i, where := 0, prp2; i < len(pages); i++ {
			if where%pageSize == pageSize-8 && i < len(pages)-1 {
				r.put64(where, where&^(pageSize-1)+pageSize)
				where += 8
			}
			r.put64(where, pages[i])
			where += 8
		}
	}
	return prp1, prp2, at
}

// §4.3, §6.9, §6.15: what is written is read, in every shape of PRP entries.
func TestReadWrite(t *testing.T) {
	const size = 4 << 20
	img := newRAM(size)
	r := newRig(t, img).up(16)
	want := disktest.Random(size)
	copy(img.Data, want)
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 200 {
		n := 1 + rnd.IntN(40)
		if i%8 == 0 {
			n = 1 + rnd.IntN(2048)
		}
		lba := uint64(rnd.IntN(size/512 - n))
		prp1, prp2, at := r.prps(rnd, n*512)
		part := want[lba*512 : lba*512+uint64(n)*512]
		q := 1 + rnd.IntN(2)
		if rnd.IntN(2) == 0 {
			for j, a := range at {
				part[j] = byte(rnd.Uint32())
				r.ram[a] = part[j]
			}
			if c := r.do(q, rw(nvmWrite, lba, n, prp1, prp2)); c.status != 0 {
				t.Fatalf("write: %#x", c.status)
			}
			continue
		}
		if c := r.do(q, rw(nvmRead, lba, n, prp1, prp2)); c.status != 0 {
			t.Fatalf("read: %#x", c.status)
		}
		for j, a := range at {
			if r.ram[a] != part[j] {
				t.Fatalf("byte %d of %d blocks at %d differs", j, n, lba)
			}
		}
	}
	if !bytes.Equal(img.Settled().Data, want) {
		t.Error("the image differs")
	}
}

// Row 20 for NVMe: commands that a driver must not send, and how they fail.
func TestBadCommands(t *testing.T) {
	img := newRAM(8 << 20)
	r := newRig(t, img).up(16)
	r.put64(listAt, 1)                       // an entry with an offset
	r.put64(listAt+0x1000, ramSize)          // outside RAM
	r.put64(listAt+0x2ff8, 3)                // a chain with an offset
	r.put64(listAt+0x3ff8, listAt+0x3000)    // a chain to its own page …
	r.put64(listAt+0x3000, dataAt)           // … which ends by the length
	r.put64(listAt+0x3008, dataAt)           //
	r.put64(listAt+0x4ff8, 1<<63)            // a chain to nowhere
	r.put64(listAt+0x1008, 0xffff_ffff_f000) //
	for name, c := range map[string]struct {
		e    entry
		want status
	}{
		"good":                  {rw(nvmRead, 0, 1, dataAt, 0), statusOK},
		"last block":            {rw(nvmRead, 16383, 1, dataAt, 0), statusOK},
		"beyond":                {rw(nvmRead, 16384, 1, dataAt, 0), statusLBARange},
		"end beyond":            {rw(nvmWrite, 16383, 2, dataAt, 0), statusLBARange},
		"overflow":              {rw(nvmRead, 1<<64-1, 2, dataAt, 0), statusLBARange},
		"too long":              {rw(nvmRead, 0, 2049, dataAt, listAt), statusInvalidField},
		"longest":               {rw(nvmRead, 0, 8, dataAt, 0), statusOK},
		"no namespace":          {entry{op: nvmRead, prp1: dataAt}, statusInvalidNS},
		"namespace 2":           {entry{op: nvmRead, ns: 2, prp1: dataAt}, statusInvalidNS},
		"all namespaces":        {entry{op: nvmRead, ns: broadcast, prp1: dataAt}, statusInvalidNS},
		"flush":                 {entry{op: nvmFlush, ns: 1}, statusOK},
		"flush all":             {entry{op: nvmFlush, ns: broadcast}, statusOK},
		"opcode":                {entry{op: 0x7f, ns: 1}, statusInvalidOpcode},
		"compare":               {entry{op: 0x05, ns: 1, prp1: dataAt}, statusInvalidOpcode},
		"SGL":                   {entry{op: nvmRead, flags: 1 << 6, ns: 1, prp1: dataAt}, statusInvalidField},
		"fused":                 {entry{op: nvmRead, flags: 1, ns: 1, prp1: dataAt}, statusInvalidField},
		"PRP 1 odd":             {rw(nvmRead, 0, 1, dataAt+2, 0), statusInvalidOffset},
		"PRP 1 outside":         {rw(nvmRead, 0, 1, ramSize, 0), statusTransferError},
		"PRP 1 wraps":           {rw(nvmRead, 0, 8, ^uint64(0)&^4095, 0), statusTransferError},
		"PRP 1 straddles":       {rw(nvmRead, 0, 16, ramSize-4096, ramSize), statusTransferError},
		"PRP 2 offset":          {rw(nvmRead, 0, 16, dataAt, dataAt+4), statusInvalidOffset},
		"PRP 2 outside":         {rw(nvmRead, 0, 16, dataAt, 1<<52), statusTransferError},
		"list misaligned":       {rw(nvmRead, 0, 32, dataAt, listAt+4), statusInvalidOffset},
		"list outside":          {rw(nvmRead, 0, 32, dataAt, 1<<40), statusTransferError},
		"list wraps":            {rw(nvmRead, 0, 32, dataAt, ^uint64(0)-7), statusTransferError},
		"entry offset":          {rw(nvmRead, 0, 32, dataAt, listAt), statusInvalidOffset},
		"entry outside":         {rw(nvmRead, 0, 32, dataAt, listAt+0x1000), statusTransferError},
		"chain offset":          {rw(nvmRead, 0, 32, dataAt, listAt+0x2ff8), statusInvalidOffset},
		"chain to itself":       {rw(nvmRead, 0, 24, dataAt, listAt+0x3ff8), statusOK},
		"chain outside":         {rw(nvmRead, 0, 32, dataAt, listAt+0x4ff8), statusTransferError},
		"zeroes beyond":         {entry{op: nvmWriteZeroes, ns: 1, d10: 16383, d12: 1}, statusLBARange},
		"zeroes":                {entry{op: nvmWriteZeroes, ns: 1, d10: 8, d12: 7 | 1<<25}, statusOK},
		"dataset, no attribute": {entry{op: nvmDatasetMgmt, ns: 1, d10: 255, prp1: 1}, statusOK},
		"dataset outside":       {entry{op: nvmDatasetMgmt, ns: 1, d10: 255, d11: 4, prp1: ramSize}, statusTransferError},
	} {
		if got := r.do(1, c.e).status; got != c.want {
			t.Errorf("%s: %#x, want %#x", name, got, c.want)
		}
	}
	if len(img.Settled().Zeroes) != 1 || img.Settled().Zeroes[0] != (disk.Range{Off: 4096, N: 4096, Unmap: true}) || len(img.Settled().Discards) != 0 {
		t.Errorf("zeroes %v, discards %v", img.Settled().Zeroes, img.Settled().Discards)
	}
}

// §6.7: Dataset Management deallocates what lies on the disk, all or nothing.
func TestDeallocate(t *testing.T) {
	img := newRAM(1 << 20)
	r := newRig(t, img).up(16)
	put := func(at uint64, ranges ...[2]uint64) {
		for i, x := range ranges {
			binary.LittleEndian.PutUint32(r.ram[at+16*uint64(i)+4:], uint32(x[0]))
			r.put64(at+16*uint64(i)+8, x[1])
		}
	}
	// Across a page's end, so that both PRP entries are used.
	put(dataAt+4096-16, [2]uint64{8, 16})
	put(dataAt+8192, [2]uint64{0, 2048}, [2]uint64{16, 64})
	e := entry{op: nvmDatasetMgmt, ns: 1, d10: 2, d11: dsmDeallocate, prp1: dataAt + 4096 - 16, prp2: dataAt + 8192}
	if c := r.do(1, e); c.status != 0 || len(img.Settled().Discards) != 2 || img.Settled().Discards[0] != (disk.Range{Off: 8192, N: 4096}) || img.Settled().Discards[1] != (disk.Range{Off: 32768, N: 8192}) {
		t.Errorf("%#x, %v", c.status, img.Settled().Discards)
	}
	put(dataAt+8192, [2]uint64{1, 2048})
	if c := r.do(1, e); c.status != statusLBARange || len(img.Settled().Discards) != 2 {
		t.Errorf("beyond: %#x, %v", c.status, img.Settled().Discards)
	}
	// 256 times the whole disk is one whole disk.
	put(dataAt, slicesOf([2]uint64{2048, 0}, 256)...)
	if c := r.do(1, entry{op: nvmDatasetMgmt, ns: 1, d10: 255, d11: dsmDeallocate, prp1: dataAt}); c.status != 0 || len(img.Settled().Discards) != 3 {
		t.Errorf("everything: %#x, %d ranges", c.status, len(img.Settled().Discards))
	}
	r = newRig(t, newRAM(1<<20), func(o *options) { o.discard = false }).up(16)
	if c := r.do(1, e); c.status != statusInvalidOpcode {
		t.Errorf("without discard: %#x", c.status)
	}
}

func slicesOf(v [2]uint64, n int) [][2]uint64 {
	s := make([][2]uint64, n)
	for i := range s {
		s[i] = v
	}
	return s
}

// A write-protected namespace (§8.18) takes no write of any kind.
func TestReadOnly(t *testing.T) {
	img := &fakedisk.RAM{Data: make([]byte, 1<<20), NoWrites: true}
	r := newRig(t, img).up(16)
	for _, op := range []uint8{nvmWrite, nvmWriteZeroes} {
		if c := r.do(1, rw(op, 0, 1, dataAt, 0)); c.status != statusWriteProtected {
			t.Errorf("opcode %d: %#x", op, c.status)
		}
	}
	if c := r.do(1, entry{op: nvmDatasetMgmt, ns: 1, d11: dsmDeallocate, prp1: dataAt}); c.status != statusInvalidOpcode {
		t.Errorf("deallocate: %#x", c.status)
	}
	if c := r.do(1, rw(nvmRead, 0, 1, dataAt, 0)); c.status != 0 {
		t.Errorf("read: %#x", c.status)
	}
}

// §5.21.1.6, §6.15: with the cache off, and with FUA, a write is durable when it
// is answered; Flush and shutdown make all of them so.
func TestWriteCache(t *testing.T) {
	img := newRAM(1 << 20)
	r := newRig(t, img).up(16)
	write := rw(nvmWrite, 0, 1, dataAt, 0)
	r.do(1, write)
	if !img.Dirty() {
		t.Error("write-back flushed")
	}
	fua := write
	fua.d12 |= 1 << 30
	r.do(1, fua)
	if img.Dirty() {
		t.Error("FUA did not flush")
	}
	r.do(1, write)
	r.do(1, entry{op: nvmFlush, ns: 1})
	if img.Dirty() {
		t.Error("Flush did not flush")
	}
	r.do(1, write)
	if c := r.admin(entry{op: adminSetFeatures, d10: featWriteCache}); c.status != 0 || img.Dirty() {
		t.Errorf("cache off: %#x, dirty %v", c.status, img.Dirty())
	}
	r.do(1, write)
	if c := r.admin(entry{op: adminGetFeatures, d10: featWriteCache}); c.result != 0 || img.Dirty() {
		t.Errorf("cache is off: %#x, dirty %v", c.result, img.Dirty())
	}
	r.admin(entry{op: adminSetFeatures, d10: featWriteCache, d11: 1})
	r.do(1, write)
	r.write(regCC, ccGood|1<<14)
	r.until("shutdown", func() bool { return r.read(regCSTS)&cstsSHST == shutdownComplete })
	if img.Dirty() {
		t.Error("shutdown did not flush")
	}
	r.disable()
	r.up(16)
	if c := r.do(1, rw(nvmRead, 0, 1, dataAt, 0)); c.status != 0 {
		t.Errorf("after shutdown and reset: %#x", c.status)
	}
}

// The host's errors reach the guest, and the device lives on.
func TestHostErrors(t *testing.T) {
	img := newRAM(1 << 20)
	r := newRig(t, img).up(16)
	img.Fail(errors.New("no space left on device"))
	for op, want := range map[uint8]status{nvmRead: statusUnrecoveredRead, nvmWrite: statusWriteFault, nvmFlush: statusInternal, nvmWriteZeroes: statusInternal} {
		if c := r.do(1, rw(op, 0, 1, dataAt, 0)); c.status != want {
			t.Errorf("opcode %d: %#x, want %#x", op, c.status, want)
		}
	}
	img.Fail(nil)
	if c := r.do(1, rw(nvmWrite, 0, 1, dataAt, 0)); c.status != 0 {
		t.Errorf("afterwards: %#x", c.status)
	}
}

// §5.3 to §5.6: queues that cannot be.
func TestQueueCommands(t *testing.T) {
	r := newRig(t, newRAM(1<<20))
	r.enable()
	sq, cq := r.queueAt(1)
	create := func(op uint8, id, size, d11 uint32, at uint64) entry {
		return entry{op: op, prp1: at, d10: id | (size-1)<<16, d11: d11}
	}
	for _, c := range []struct {
		name string
		e    entry
		want status
	}{
		{"SQ without CQ", create(adminCreateSQ, 1, 16, 1|1<<16, uint64(sq)), statusBadCQ},
		{"SQ to the admin CQ", create(adminCreateSQ, 1, 16, 1, uint64(sq)), statusBadCQ},
		{"SQ to a wrong CQ", create(adminCreateSQ, 1, 16, 1|9<<16, uint64(sq)), statusBadQueueID},
		{"CQ 0", create(adminCreateCQ, 0, 16, 1, uint64(cq)), statusBadQueueID},
		{"CQ 3 of 2", create(adminCreateCQ, 3, 16, 1, uint64(cq)), statusBadQueueID},
		{"CQ of one", create(adminCreateCQ, 1, 1, 1, uint64(cq)), statusBadQueueSize},
		{"CQ too long", create(adminCreateCQ, 1, 257, 1, uint64(cq)), statusBadQueueSize},
		{"CQ of 65536", create(adminCreateCQ, 1, 65536, 1, uint64(cq)), statusBadQueueSize},
		{"CQ scattered", create(adminCreateCQ, 1, 16, 0, uint64(cq)), statusInvalidField},
		{"CQ at an offset", create(adminCreateCQ, 1, 16, 1, uint64(cq)+8), statusInvalidOffset},
		{"CQ outside", create(adminCreateCQ, 1, 16, 1, ramSize), statusInvalidField},
		{"CQ wraps", create(adminCreateCQ, 1, 256, 1, ^uint64(4095)), statusInvalidField},
		{"CQ vector", create(adminCreateCQ, 1, 16, 3|3<<16, uint64(cq)), statusBadVector},
		{"CQ", create(adminCreateCQ, 1, 16, 3|1<<16, uint64(cq)), statusOK},
		{"CQ again", create(adminCreateCQ, 1, 16, 3|1<<16, uint64(cq)), statusBadQueueID},
		{"SQ outside", create(adminCreateSQ, 1, 16, 1|1<<16, 1<<40), statusInvalidField},
		{"SQ", create(adminCreateSQ, 1, 16, 1|1<<16, uint64(sq)), statusOK},
		{"SQ again", create(adminCreateSQ, 1, 16, 1|1<<16, uint64(sq)), statusBadQueueID},
		{"number of queues too late", entry{op: adminSetFeatures, d10: featQueues, d11: 0}, statusSequence},
		{"delete CQ in use", entry{op: adminDeleteCQ, d10: 1}, statusBadDeletion},
		{"delete SQ", entry{op: adminDeleteSQ, d10: 1}, statusOK},
		{"delete SQ again", entry{op: adminDeleteSQ, d10: 1}, statusBadQueueID},
		{"delete admin SQ", entry{op: adminDeleteSQ}, statusBadQueueID},
		{"delete CQ", entry{op: adminDeleteCQ, d10: 1}, statusOK},
		{"delete admin CQ", entry{op: adminDeleteCQ}, statusBadQueueID},
	} {
		if got := r.admin(c.e).status; got != c.want {
			t.Errorf("%s: %#x, want %#x", c.name, got, c.want)
		}
	}
}

// §5.9, §5.21: features.
func TestFeatures(t *testing.T) {
	r := newRig(t, newRAM(1<<20))
	r.enable()
	for _, c := range []struct {
		name   string
		e      entry
		want   status
		result uint32
	}{
		{"queues", entry{op: adminSetFeatures, d10: featQueues, d11: 7 | 7<<16}, statusOK, 1 | 1<<16},
		{"queues, impossible", entry{op: adminSetFeatures, d10: featQueues, d11: 0xffff}, statusInvalidField, 0},
		{"saved", entry{op: adminSetFeatures, d10: featArbitration | featSave}, statusNotSaveable, 0},
		{"unknown", entry{op: adminSetFeatures, d10: 0x55}, statusInvalidField, 0},
		{"get unknown", entry{op: adminGetFeatures, d10: 0x55}, statusInvalidField, 0},
		{"get, bad select", entry{op: adminGetFeatures, d10: featArbitration | 4<<8}, statusInvalidField, 0},
		{"set", entry{op: adminSetFeatures, d10: featTemperature, d11: 350}, statusOK, 0},
		{"current", entry{op: adminGetFeatures, d10: featTemperature}, statusOK, 350},
		{"default", entry{op: adminGetFeatures, d10: featTemperature | 1<<8}, statusOK, 343},
		{"capabilities", entry{op: adminGetFeatures, d10: featTemperature | 3<<8}, statusOK, changeable},
		{"power", entry{op: adminSetFeatures, d10: featPower, d11: 1}, statusInvalidField, 0},
		{"vector", entry{op: adminSetFeatures, d10: featVector, d11: 3}, statusInvalidField, 0},
		{"write cache", entry{op: adminGetFeatures, d10: featWriteCache}, statusOK, 1},
		{"abort", entry{op: adminAbort, d10: 1 << 16}, statusOK, 1},
		{"opcode", entry{op: 0xc0}, statusInvalidOpcode, 0},
	} {
		if got := r.admin(c.e); got.status != c.want || (c.want == 0 && got.result != c.result) {
			t.Errorf("%s: %#x with %#x, want %#x with %#x", c.name, got.status, got.result, c.want, c.result)
		}
	}
}

// §5.14: log pages.
func TestLogPages(t *testing.T) {
	r := newRig(t, newRAM(1<<20))
	r.enable()
	get := func(id uint8, n, off uint32) completion {
		copy(r.bytes(dataAt, 4096), bytes.Repeat([]byte{0xa5}, 4096))
		return r.admin(entry{op: adminGetLogPage, prp1: dataAt, prp2: dataAt + 4096, d10: uint32(id) | (n/4-1)<<16, d11: (n/4 - 1) >> 16, d12: off})
	}
	if c := get(logHealth, 512, 0); c.status != 0 || r.ram[dataAt+3] != 100 || r.ram[dataAt+511] != 0 || r.ram[dataAt+512] != 0xa5 {
		t.Errorf("health: %#x %x", c.status, r.bytes(dataAt, 16))
	}
	if c := get(logFirmware, 512, 0); c.status != 0 || r.ram[dataAt] != 1 {
		t.Errorf("firmware: %#x", c.status)
	}
	if c := get(logEffects, 8, 1024); c.status != 0 || r.ram[dataAt] != 1 || r.ram[dataAt+4] != 3 {
		t.Errorf("effects: %#x", c.status)
	}
	for name, c := range map[string]completion{
		"unknown": get(0x70, 512, 0), "offset": get(logHealth, 4, 516), "odd offset": get(logHealth, 4, 2), "huge": get(logHealth, 4<<20, 0),
	} {
		if c.status == 0 {
			t.Errorf("%s: accepted", name)
		}
	}
}

// §5.2: wrong doorbells are events, one until the log is read; the queue goes on.
func TestAsyncEvents(t *testing.T) {
	r := newRig(t, newRAM(1<<20)).up(16)
	for range maxAsyncEvents {
		r.put(0, entry{op: adminAsyncEvent})
	}
	r.kick(0)
	if c := r.admin(entry{op: adminAsyncEvent}); c.status != statusTooManyEvents {
		t.Errorf("one too many: %#x", c.status)
	}
	for range 1000 {
		r.ring(2, 16) // as many as the queue has
		r.ring(3, 99)
		r.ring(2*63, 1)
		r.ring(1000, 1)
	}
	if c := r.wait(0); c.status != 0 || c.result != eventBadValue {
		t.Errorf("event %#x, %#x", c.result, c.status)
	}
	r.admin(entry{op: adminGetLogPage, prp1: dataAt, d10: logErrors | 15<<16})
	if c, ok := r.take(0); ok {
		t.Errorf("a second event %#x", c.result)
	}
	r.ring(2*63, 1)
	if c := r.wait(0); c.result != eventBadDoorbell {
		t.Errorf("event %#x", c.result)
	}
	if c := r.do(1, rw(nvmRead, 0, 1, dataAt, 0)); c.status != 0 {
		t.Errorf("read: %#x", c.status)
	}
}

// Interrupts: each batch of completions sends the queue's vector (§7.5.1).
func TestInterrupts(t *testing.T) {
	r := newRig(t, newRAM(1<<20)).up(16)
	before := r.wires.MSI(2).Sent()
	for range 5 {
		r.put(2, rw(nvmRead, 0, 1, dataAt, 0))
	}
	r.kick(2)
	for range 5 {
		r.wait(2)
	}
	r.until("interrupt", func() bool { return r.wires.MSI(2).Sent() > before })
	if n := r.wires.MSI(1).Sent(); n != 0 {
		t.Errorf("%d interrupts of another queue", n)
	}
}

// A completion queue that the host does not empty holds its commands back and
// nothing is lost; others go on (§4.1.1).
func TestFullCompletionQueue(t *testing.T) {
	r := newRig(t, newRAM(1<<20)).up(8)
	var ids []uint16
	for range 4 { // four times the seven places of the submission queue
		for range 7 {
			ids = append(ids, r.put(1, rw(nvmRead, 0, 1, dataAt, 0)))
		}
		r.kick(1)
		r.until("commands fetched", func() bool { return r.c.sqs[1].Load().head.Load() == r.sq[1].tail })
	}
	if c := r.do(2, rw(nvmRead, 0, 1, dataAt, 0)); c.status != 0 {
		t.Errorf("the other queue: %#x", c.status)
	}
	got := map[uint16]bool{}
	for range ids {
		got[r.wait(1).cid] = true
	}
	for _, id := range ids {
		if !got[id] {
			t.Errorf("command %d was not answered", id)
		}
	}
	// A queue with answers that nobody takes can be deleted and reset.
	for range 3 {
		for range 7 {
			r.put(1, rw(nvmRead, 0, 1, dataAt, 0))
		}
		r.kick(1)
		r.until("commands fetched", func() bool { return r.c.sqs[1].Load().head.Load() == r.sq[1].tail })
	}
	if c := r.admin(entry{op: adminDeleteSQ, d10: 1}); c.status != 0 {
		t.Errorf("delete: %#x", c.status)
	}
	r.disable()
}

// More commands than may be in flight, none taken: the queue stands still and
// the controller can be reset.
func TestNobodyTakes(t *testing.T) {
	r := newRig(t, newRAM(1<<20)).up(4)
	q := r.c.sqs[1].Load()
	for i := range disk.QueueDepth + 100 {
		r.put(1, rw(nvmRead, 0, 1, dataAt, 0))
		r.kick(1)
		if i < disk.QueueDepth-4 {
			r.until("command fetched", func() bool { return q.head.Load() == r.sq[1].tail })
		}
	}
	r.disable()
	r.up(16)
	if c := r.do(1, rw(nvmRead, 0, 1, dataAt, 0)); c.status != 0 {
		t.Errorf("after reset: %#x", c.status)
	}
}

// §7.3.2: a reset with I/O in flight: CSTS.RDY stays until the host is done, and
// nothing is written afterwards.
func TestResetInFlight(t *testing.T) {
	img := newRAM(1 << 20)
	img.Gate = make(chan struct{})
	r := newRig(t, img).up(16)
	for range 8 {
		r.put(1, rw(nvmRead, 0, 1, dataAt, 0))
		r.put(2, rw(nvmWrite, 0, 1, dataAt, 0))
	}
	r.kick(1)
	r.kick(2)
	start := time.Now()
	r.write(regCC, 0)
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("the CPU waited %v", d)
	}
	r.write(regCC, ccGood) // enabled again before the reset is over
	time.Sleep(10 * time.Millisecond)
	if r.read(regCSTS)&cstsReady == 0 {
		t.Error("the reset was over with requests in flight")
	}
	r.write(regCC, 0)
	close(img.Gate)
	r.until("reset", func() bool { return r.read(regCSTS) == 0 })
	before := bytes.Clone(r.ram[:dataAt+0x10000])
	time.Sleep(5 * time.Millisecond)
	if !bytes.Equal(before, r.ram[:dataAt+0x10000]) {
		t.Error("memory was written after the reset")
	}
	r.up(16)
	if c := r.do(1, rw(nvmRead, 0, 1, dataAt, 0)); c.status != 0 {
		t.Errorf("after reset: %#x", c.status)
	}
}

// Row 6: resets from one CPU while others submit, ring and delete.
func TestResetStorm(t *testing.T) {
	r := newRig(t, newRAM(1<<20))
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := uint32(0); ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			for q := range uint64(6) {
				r.ring(q, i%17)
			}
			r.MMIORead(r.bar+regCSTS, 4)
		}
	}()
	for range 100 {
		r.write(regAQA, 31|31<<16)
		r.write64(regASQ, queuesAt)
		r.write64(regACQ, queuesAt+0x4000)
		copy(r.ram[queuesAt:], entry{op: adminCreateCQ, prp1: queuesAt + 0xc000, d10: 1 | 15<<16, d11: 3}.bytes(1))
		copy(r.ram[queuesAt+64:], entry{op: adminCreateSQ, prp1: queuesAt + 0x8000, d10: 1 | 15<<16, d11: 1 | 1<<16}.bytes(2))
		copy(r.ram[queuesAt+0x8000:], rw(nvmRead, 0, 8, dataAt, 0).bytes(3))
		copy(r.ram[queuesAt+128:], entry{op: adminDeleteSQ, d10: 1}.bytes(4))
		r.write(regCC, ccGood)
		r.ring(0, 3)
		r.ring(2, 3)
		r.write(regCC, 0)
	}
	close(stop)
	<-done
	r.until("reset", func() bool { return r.read(regCSTS) == 0 })
	r.up(16)
}

// §7.13: with doorbell buffers the host rings only when it passes the event
// index, and a bell is bound to the doorbell's address.
func TestShadowDoorbells(t *testing.T) {
	r := newRig(t, newRAM(1<<20)).up(16)
	const buffer, event = 0x20_0000 - 0x2000, 0x20_0000 - 0x1000
	for _, bad := range []entry{{op: adminDoorbellBuf, prp1: buffer + 8, prp2: event}, {op: adminDoorbellBuf, prp1: ramSize, prp2: event}, {op: adminDoorbellBuf, prp1: buffer, prp2: 1 << 60}} {
		if c := r.admin(bad); c.status == 0 {
			t.Errorf("%+v accepted", bad)
		}
	}
	if c := r.admin(entry{op: adminDoorbellBuf, prp1: buffer, prp2: event}); c.status != 0 {
		t.Fatalf("%#x", c.status)
	}
	b, err := r.mem.OrderedSlice(buffer, 0x2000)
	r.check(err)
	rung := 0
	for i := range 200 {
		old := b.LoadUint16(8)
		r.put(1, rw(nvmRead, uint64(i), 1, dataAt, 0))
		now := uint16(r.sq[1].tail)
		b.StoreUint16(8, now)
		mem.Fence()
		if e := b.LoadUint16(0x1000 + 8); uint16(now-e-1) < uint16(now-old) { // virtio's rule
			rung++
			for _, d := range r.wires.Doorbells() {
				if addr, ok := d.Bound(); ok && addr == r.bar+doorbellAt+8 {
					d.Ring()
				}
			}
		}
		var c completion
		r.until("completion", func() (ok bool) { c, ok = r.take(1); return ok })
		b.StoreUint16(12, uint16(r.sq[1].head)) // no doorbell: the queue is not full
		if c.status != 0 {
			t.Fatalf("%#x", c.status)
		}
	}
	if rung == 0 {
		t.Error("the doorbell was never wanted")
	}
	// A tail beyond the queue is an event, and nothing else.
	b.StoreUint16(8, 999)
	r.ring(2, 0)
	r.put(2, rw(nvmRead, 0, 1, dataAt, 0))
	b.StoreUint16(16, 1)
	r.kick(2)
	if c := r.wait(2); c.status != 0 {
		t.Errorf("the other queue: %#x", c.status)
	}
	r.put(0, entry{op: adminAsyncEvent})
	r.kick(0)
	if c := r.wait(0); c.result != eventBadValue {
		t.Errorf("event %#x", c.result)
	}
}

// §4.1.1 and zero allocations for a request.
func TestAllocs(t *testing.T) {
	for _, img := range []disk.Image{fakedisk.Null{RAM: newRAM(1 << 20)}, newRAM(1 << 20)} {
		r := newRig(t, img).up(16)
		e := rw(nvmRead, 0, 24, dataAt, listAt).bytes(7)
		r.put64(listAt, dataAt+0x2000)
		r.put64(listAt+8, dataAt+0x4000)
		d := &r.sq[1]
		n := testing.AllocsPerRun(300, func() {
			copy(r.ram[d.sq+uint64(d.tail)*64:], e)
			if d.tail++; d.tail == d.size {
				d.tail = 0
			}
			r.kick(1)
			for {
				if _, ok := r.take(1); ok {
					break
				}
				runtime.Gosched()
			}
			r.ring(3, d.head)
		})
		if n != 0 {
			t.Errorf("%T: %v allocations per command", img, n)
		}
	}
}

// BenchmarkDevice4K is the controller's own time per 4 KiB read, system call
// taken out: bursts of 64 commands, so that the wake-up is shared.
func BenchmarkDevice4K(b *testing.B) {
	r := newRig(b, fakedisk.Null{RAM: newRAM(1 << 20)}).up(256)
	const burst = 64
	d := &r.sq[1]
	for i := range uint64(256) {
		copy(r.ram[d.sq+i*64:], rw(nvmRead, 8, 8, dataAt+i*4096, 0).bytes(uint16(i)))
	}
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N/burst + 1 {
		d.tail = (d.tail + burst) % 256
		r.kick(1)
		for range burst {
			for {
				if _, ok := r.take(1); ok {
					break
				}
				time.Sleep(time.Microsecond)
			}
		}
		r.ring(3, d.head)
	}
}

// FuzzCommand: any command on any queue, with any PRP list.
func FuzzCommand(f *testing.F) {
	f.Add(rw(nvmRead, 0, 24, dataAt, listAt).bytes(1), []byte{0, 0, 16, 0, 0, 0, 0, 0}, true)
	f.Add(entry{op: adminIdentify, prp1: dataAt, d10: 1}.bytes(1), []byte{}, false)
	f.Add(entry{op: adminGetLogPage, prp1: dataAt, d10: 2 | 127<<16}.bytes(1), []byte{}, false)
	f.Add(entry{op: adminCreateCQ, prp1: queuesAt, d10: 1 | 15<<16, d11: 3}.bytes(1), []byte{}, false)
	f.Fuzz(func(t *testing.T, cmd, list []byte, io bool) {
		r := newRig(t, newRAM(64<<10), func(o *options) { o.ram = 4 << 20 }).up(16)
		copy(r.ram[listAt:], list)
		q := 0
		if io {
			q = 1
		}
		d := &r.sq[q]
		copy(r.ram[d.sq+uint64(d.tail)*64:d.sq+uint64(d.tail+1)*64], cmd)
		d.tail++
		r.kick(q)
		r.until("command fetched", func() bool {
			s := r.c.sqs[q].Load()
			return s == nil || s.head.Load() == d.tail
		})
		r.disable()
	})
}

// FuzzRegisters: any accesses to BAR 0.
func FuzzRegisters(f *testing.F) {
	f.Add([]byte{0x14, 0, 4, 1, 0, 0x46, 0})
	f.Add([]byte{0, 0x10, 4, 3, 0, 0, 0, 1, 0x10, 8, 1, 2, 3, 4})
	f.Fuzz(func(t *testing.T, ops []byte) {
		r := newRig(t, newRAM(64<<10), func(o *options) { o.ram = 4 << 20 }).up(16)
		for len(ops) >= 7 {
			off, size := uint64(binary.LittleEndian.Uint16(ops))%barSize, 1<<(ops[2]&3)
			if off+uint64(size) <= barSize {
				r.MMIOWrite(r.bar+off, size, uint64(binary.LittleEndian.Uint32(ops[3:])))
				r.MMIORead(r.bar+off, size)
			}
			ops = ops[7:]
		}
		r.write(regCC, 0)
		r.until("reset", func() bool { return r.read(regCSTS)&cstsReady == 0 })
	})
}
