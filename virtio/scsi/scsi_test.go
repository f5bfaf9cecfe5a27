package scsi

import (
	"bytes"
	"encoding/binary"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/virtiotest"
	"github.com/gvmspawn/gvmspawn/virtio/virtq/virtqtest"
	"github.com/gvmspawn/gvmspawn/vmm/disk"
	"github.com/gvmspawn/gvmspawn/vmm/disk/fakedisk"
)

var _ virtio.Device = (*Device)(nil)

func newRAM(n int) *fakedisk.RAM { return fakedisk.NewRAM(n) }

func target(img disk.Image, cd bool) Target {
	return Target{Drive: disk.NewDrive(disk.Config{Image: img, Discard: true, Log: slog.New(slog.DiscardHandler)}), CD: cd, Serial: "root.raw", ID: [16]byte{0xab, 1}}
}

func newDevice(t testing.TB, queues int, targets ...Target) *Device {
	t.Helper()
	d, err := New(Config{Targets: targets, Queues: queues})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// machine is a driver that knows SCSI.
type machine struct {
	*virtiotest.Machine
	t testing.TB
}

// start activates a device with one target, whose power-on unit attention it takes.
func start(t testing.TB, img disk.Image, cd bool) machine {
	t.Helper()
	m := machine{virtiotest.New(t, newDevice(t, 1, target(img, cd)), virtiotest.Options{EventIdx: true, Indirect: true}), t}
	if a := m.cdb(0, 0, 0, 0, 0, 0, 0); a.key() != 6 {
		t.Fatalf("no unit attention: %+v", a)
	}
	return m
}

var lun0 = [8]byte{1, 0, 0x40, 0}

// header is struct virtio_scsi_req_cmd's device-readable part.
func header(lun [8]byte, cdb ...byte) []byte {
	b := make([]byte, requestHeader+defaultCDBSize)
	copy(b, lun[:])
	copy(b[requestHeader:], cdb)
	return b
}

// answer is what came back.
type answer struct {
	response response
	status   byte
	residual uint32
	sense    []byte
	in       []byte
	written  uint32
}

func (a answer) key() byte {
	if a.status != statusCheckCondition || len(a.sense) < 14 {
		return 0
	}
	return a.sense[2] & 15
}

func (a answer) code() sense {
	if a.status != statusCheckCondition || len(a.sense) < 14 {
		return senseNone
	}
	return sense{a.sense[2], a.sense[12], a.sense[13]}
}

func (m machine) send(lun [8]byte, cdb, out []byte, in int) answer {
	m.t.Helper()
	o := [][]byte{header(lun, cdb...)}
	if len(out) > 0 {
		o = append(o, out)
	}
	lens := []int{responseHeader + defaultSenseSize}
	if in > 0 {
		lens = append(lens, in)
	}
	u := m.Queue[firstRequests].Do(o, lens)
	le := binary.LittleEndian
	b := u.In[0]
	a := answer{response: response(b[11]), status: b[10], residual: le.Uint32(b[4:]), written: u.Written}
	a.sense = b[responseHeader:][:le.Uint32(b)]
	if in > 0 {
		a.in = u.In[1]
	}
	return a
}

// cdb sends a command with in bytes of room for data-in.
func (m machine) cdb(in int, cdb ...byte) answer {
	m.t.Helper()
	return m.send(lun0, cdb, nil, in)
}

// put sends a command with data-out.
func (m machine) put(out []byte, cdb ...byte) answer {
	m.t.Helper()
	return m.send(lun0, cdb, out, 0)
}

// rw10 is the CDB of READ (10) or WRITE (10).
func rw10(op byte, lba uint32, n uint16) []byte {
	b := []byte{op, 0}
	b = binary.BigEndian.AppendUint32(b, lba)
	return append(b, 0, byte(n>>8), byte(n), 0)
}

// §5.6.4: configuration, and what the driver may write of it.
func TestConfig(t *testing.T) {
	m := virtiotest.New(t, newDevice(t, 4, target(newRAM(1<<20), false), target(newRAM(1<<20), true)), virtiotest.Options{})
	b, le := m.Config(0, configSize), binary.LittleEndian
	if le.Uint32(b) != 4 || le.Uint32(b[4:]) != 254 || le.Uint32(b[8:]) != 0xffff || le.Uint32(b[16:]) != 16 ||
		le.Uint32(b[20:]) != 96 || le.Uint32(b[24:]) != 32 || le.Uint16(b[30:]) != 1 || len(m.Queue) != 6 || m.Device.Features() != 0 {
		t.Errorf("config %x", b)
	}
	for off := range uint64(configSize) {
		m.Device.WriteConfig(off, []byte{1, 2, 3, 4})
		m.Device.WriteConfig(off, []byte{9})
	}
	want := bytes.Clone(b)
	copy(want[20:], []byte{1, 2, 3, 4, 1, 2, 3, 4})
	if got := m.Config(0, configSize); !bytes.Equal(got, want) {
		t.Errorf("config after writes %x, want %x", got, want)
	}
	m.Reset() // §5.6.4.1: "set the sense_size and cdb_size fields to their initial values"
	if got := m.Config(0, configSize); !bytes.Equal(got, b) {
		t.Errorf("config after reset %x", got)
	}
	for _, cfg := range []Config{{Queues: 0, Targets: []Target{{}}}, {Queues: 1}, {Queues: 1, Targets: []Target{{Drive: disk.NewDrive(disk.Config{Image: newRAM(512)}), Serial: strings.Repeat("x", 31)}}}} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v accepted", cfg)
		}
	}
}

// What is written is read, by every length of CDB.
func TestReadWrite(t *testing.T) {
	img := newRAM(4 << 20)
	m := start(t, img, false)
	r := rand.New(rand.NewPCG(5, 6))
	for i := range 200 {
		lba, n := uint32(r.IntN(8192-64)), 1+r.IntN(64)
		data := make([]byte, n*512)
		for j := range data {
			data[j] = byte(r.Uint32())
		}
		be := binary.BigEndian
		var write, read []byte
		switch i % 4 {
		case 0:
			write = []byte{opWrite6, byte(lba >> 16), byte(lba >> 8), byte(lba), byte(n), 0}
			read = rw10(opRead10, lba, uint16(n))
		case 1:
			write = rw10(opWrite10, lba, uint16(n))
			read = []byte{opRead6, byte(lba >> 16), byte(lba >> 8), byte(lba), byte(n), 0}
		case 2:
			write = append(be.AppendUint32(be.AppendUint32([]byte{opWrite12, 0}, lba), uint32(n)), 0, 0)
			read = append(be.AppendUint32(be.AppendUint64([]byte{opRead16, 0}, uint64(lba)), uint32(n)), 0, 0)
		default:
			write = append(be.AppendUint32(be.AppendUint64([]byte{opWrite16, 0}, uint64(lba)), uint32(n)), 0, 0)
			read = append(be.AppendUint32(be.AppendUint32([]byte{opRead12, 0}, lba), uint32(n)), 0, 0)
		}
		if a := m.put(data, write...); a.response != 0 || a.status != 0 || a.residual != 0 {
			t.Fatalf("write: %+v", a)
		}
		a := m.cdb(len(data)+512, read...)
		if a.response != 0 || a.status != 0 || a.residual != 512 || !bytes.Equal(a.in[:len(data)], data) {
			t.Fatalf("read: status %d, residual %d", a.status, a.residual)
		}
		if want := uint32(responseHeader + defaultSenseSize + len(data)); a.written != want {
			t.Fatalf("%d written, want %d", a.written, want)
		}
	}
	if a := m.cdb(256*512, opRead6, 0, 0, 0, 0, 0); a.status != 0 || a.residual != 0 {
		t.Errorf("READ (6) of 0 blocks is of 256: %+v", a.residual)
	}
}

// SPC-4, SBC-3: what identifies a disk and describes it.
func TestDisk(t *testing.T) {
	m := start(t, newRAM(1<<20), false)
	a := m.cdb(64, opInquiry, 0, 0, 0, 36, 0)
	if a.in[0] != 0 || a.in[1] != 0 || a.in[2] != 6 || a.in[4] != 31 || string(a.in[8:32]) != "gvmspawnvirtual disk    " || a.residual != 28 {
		t.Errorf("INQUIRY %q, residual %d", a.in[:36], a.residual)
	}
	page := func(p byte) []byte {
		a := m.cdb(255, opInquiry, 1, p, 0, 255, 0)
		if a.status != 0 {
			t.Fatalf("page %#x: %+v", p, a)
		}
		return a.in[:4+binary.BigEndian.Uint16(a.in[2:])]
	}
	if p := page(0); string(p[4:]) != "\x00\x80\x83\xb0\xb1\xb2" {
		t.Errorf("pages %x", p)
	}
	if p := page(0x80); string(p[4:]) != "root.raw" {
		t.Errorf("serial number %q", p)
	}
	if p := page(0x83); string(p[8:24]) != "gvmspawnroot.raw" || p[28] != 0x3b {
		t.Errorf("identification %q", p)
	}
	be := binary.BigEndian
	if p := page(0xb0); p[4] != 1 || be.Uint32(p[20:]) != maxUnmapBlocks || be.Uint32(p[24:]) != maxUnmap || be.Uint64(p[36:]) != maxSameBlocks || len(p) != 64 {
		t.Errorf("limits %x", p)
	}
	if p := page(0xb1); be.Uint16(p[4:]) != 1 || len(p) != 64 {
		t.Errorf("characteristics %x", p)
	}
	if p := page(0xb2); p[5] != 0xe0 || p[6] != 2 {
		t.Errorf("provisioning %x", p)
	}
	if a := m.cdb(8, rw10(opReadCapacity10, 0, 0)...); string(a.in) != "\x00\x00\x07\xff\x00\x00\x02\x00" {
		t.Errorf("capacity %x", a.in)
	}
	if a := m.cdb(32, opServiceActionIn, saReadCapacity16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32); a.in[6] != 7 || a.in[7] != 255 || a.in[10] != 2 || a.in[13] != 3 || a.in[14] != 0x80 {
		t.Errorf("capacity %x", a.in)
	}
	if a := m.cdb(16, opReportLUNs, 0, 0, 0, 0, 0, 0, 0, 0, 16); a.in[3] != 8 || a.in[8] != 0 {
		t.Errorf("LUNs %x", a.in)
	}
	if a := m.cdb(18, opRequestSense, 0, 0, 0, 18); a.status != 0 || a.in[0] != 0x70 || a.in[2] != 0 {
		t.Errorf("sense %+v", a)
	}
	if a := m.cdb(64, opModeSense6, 8, 0x3f, 0, 64); a.in[0] != 35 || a.in[2] != 0x10 || a.in[3] != 0 || a.in[4] != 8 || a.in[6] != 4 || a.in[24] != 0x0a {
		t.Errorf("mode pages %x", a.in)
	}
	if a := m.cdb(64, opModeSense10, 0, 0x48, 0, 0, 0, 0, 0, 64); a.in[1] != 34 || a.in[7] != 8 || a.in[18] != cachingWCE || a.in[13] != 0 || a.in[14] != 2 {
		t.Errorf("changeable caching page %x", a.in)
	}
}

// What fails, and how: row 20 for SCSI.
func TestBadCommands(t *testing.T) {
	img := newRAM(1 << 20)
	m := start(t, img, false)
	block := make([]byte, 512)
	ones := bytes.Repeat([]byte{1}, 512)
	unmap := func(size uint16, d ...[2]uint64) []byte {
		b := []byte{0, 0, byte(size >> 8), byte(size), 0, 0, 0, 0}
		for _, x := range d {
			b = binary.BigEndian.AppendUint64(b, x[0])
			b = binary.BigEndian.AppendUint32(b, uint32(x[1]))
			b = append(b, 0, 0, 0, 0)
		}
		return b
	}
	u := func(n int) []byte { return []byte{opUnmap, 0, 0, 0, 0, 0, 0, byte(n >> 8), byte(n), 0} }
	same := func(flags byte, lba uint32, n uint16) []byte {
		c := rw10(opWriteSame10, lba, n)
		c[1] = flags
		return c
	}
	big := make([][2]uint64, maxUnmap+1)
	for name, c := range map[string]struct {
		out  []byte
		in   int
		cdb  []byte
		want sense
	}{
		"good":                   {nil, 512, rw10(opRead10, 2047, 1), senseNone},
		"no blocks":              {nil, 0, rw10(opRead10, 2048, 0), senseNone},
		"beyond":                 {nil, 512, rw10(opRead10, 2048, 1), senseLBARange},
		"end beyond":             {nil, 1024, rw10(opRead10, 2047, 2), senseLBARange},
		"write beyond":           {block, 0, rw10(opWrite10, 1<<32-1, 1), senseLBARange},
		"overflow":               {nil, 512, []byte{opRead16, 0, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 1, 0, 0}, senseLBARange},
		"read protect":           {nil, 512, []byte{opRead10, 0x20, 0, 0, 0, 0, 0, 0, 1, 0}, senseField},
		"opcode":                 {nil, 0, []byte{0xff}, senseOpcode},
		"vendor opcode":          {nil, 0, []byte{0xc5}, senseOpcode},
		"format":                 {nil, 0, []byte{0x04}, senseOpcode},
		"TOC of a disk":          {nil, 20, []byte{opReadTOC}, senseOpcode},
		"service action":         {nil, 20, []byte{opServiceActionIn, 5}, senseField},
		"vital page":             {nil, 64, []byte{opInquiry, 1, 0x99, 0, 64}, senseField},
		"inquiry page":           {nil, 64, []byte{opInquiry, 0, 1, 0, 64}, senseField},
		"mode page":              {nil, 64, []byte{opModeSense6, 0, 5, 0, 64}, senseField},
		"mode subpage":           {nil, 64, []byte{opModeSense6, 0, 8, 3, 64}, senseField},
		"saved values":           {nil, 64, []byte{opModeSense6, 0, 0xc8, 0, 64}, senseNoSaving},
		"descriptor sense":       {nil, 64, []byte{opRequestSense, 1, 0, 0, 64}, senseField},
		"unmap":                  {unmap(16, [2]uint64{8, 8}), 0, u(24), senseNone},
		"unmap nothing":          {nil, 0, u(0), senseNone},
		"unmap, header only":     {unmap(0), 0, u(8), senseNone},
		"unmap, half a header":   {unmap(0), 0, u(4), senseListLength},
		"unmap beyond":           {unmap(16, [2]uint64{2047, 2}), 0, u(24), senseLBARange},
		"unmap overflow":         {unmap(16, [2]uint64{1<<64 - 1, 2}), 0, u(24), senseLBARange},
		"unmap many":             {unmap(uint16(16*len(big)), big...), 0, u(8 + 16*len(big)), senseList},
		"unmap lies":             {unmap(0xfff0, [2]uint64{0, 1}), 0, u(24), senseList},
		"unmap anchor":           {unmap(16), 0, []byte{opUnmap, 1, 0, 0, 0, 0, 0, 0, 24}, senseField},
		"same":                   {block, 0, same(0, 16, 8), senseNone},
		"same, unmap":            {block, 0, same(8, 16, 8), senseNone},
		"same, pattern":          {ones, 0, same(0, 16, 8), senseList},
		"same, no blocks":        {block, 0, same(0, 16, 0), senseField},
		"same beyond":            {block, 0, same(0, 2047, 2), senseLBARange},
		"same, no data":          {nil, 0, []byte{opWriteSame16, 9, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0}, senseNone},
		"verify":                 {nil, 0, rw10(opVerify10, 0, 100), senseNone},
		"verify beyond":          {nil, 0, rw10(opVerify10, 2000, 100), senseLBARange},
		"verify bytes":           {block, 0, append([]byte{opVerify10, 2}, rw10(0, 0, 1)[2:]...), senseField},
		"sync beyond":            {nil, 0, rw10(opSyncCache10, 2048, 1), senseLBARange},
		"select, no page format": {make([]byte, 24), 0, []byte{opModeSelect6, 0, 0, 0, 24}, senseField},
		"select, saved":          {make([]byte, 24), 0, []byte{opModeSelect6, 0x11, 0, 0, 24}, senseField},
		"select, short":          {make([]byte, 2), 0, []byte{opModeSelect6, 0x10, 0, 0, 2}, senseListLength},
		"select, unknown page":   {append(make([]byte, 4), 0x19, 2, 0, 0), 0, []byte{opModeSelect6, 0x10, 0, 0, 8}, senseList},
		"select, cut page":       {append(make([]byte, 4), 8, 18, 4), 0, []byte{opModeSelect6, 0x10, 0, 0, 7}, senseListLength},
		"select, what is fixed":  {append(append(make([]byte, 4), 8, 18, 4, 1), make([]byte, 16)...), 0, []byte{opModeSelect6, 0x10, 0, 0, 24}, senseList},
		"select, descriptor":     {append([]byte{0, 0, 0, 7}, make([]byte, 20)...), 0, []byte{opModeSelect6, 0x10, 0, 0, 24}, senseList},
		"select, nothing":        {nil, 0, []byte{opModeSelect6, 0x10, 0, 0, 0}, senseNone},
		"eject":                  {nil, 0, []byte{opStartStop, 0, 0, 0, 2}, senseRemoval},
	} {
		a := m.send(lun0, c.cdb, c.out, c.in)
		if a.response != VIRTIO_SCSI_S_OK || a.code() != c.want {
			t.Errorf("%s: response %d, status %d, sense %v, want %v", name, a.response, a.status, a.code(), c.want)
		}
	}
	// §5.6.6.1.2: more data than there is room for.
	for name, a := range map[string]answer{
		"read": m.cdb(512, rw10(opRead10, 0, 2)...), "read nowhere": m.cdb(0, rw10(opRead10, 0, 1)...), "write": m.put(block, rw10(opWrite10, 0, 2)...),
		"write of data-in": m.cdb(512, rw10(opWrite10, 0, 1)...), "unmap": m.put(make([]byte, 8), u(24)...),
	} {
		if a.response != VIRTIO_SCSI_S_OVERRUN {
			t.Errorf("%s: response %d", name, a.response)
		}
	}
	s := img.Settled()
	if len(s.Discards) != 1 || s.Discards[0] != (disk.Range{Off: 4096, N: 4096}) || len(s.Zeroes) != 3 || m.NeedsReset() {
		t.Errorf("discards %v, zeroes %v", s.Discards, s.Zeroes)
	}
}

// Addresses of targets and logical units (§5.6.6.1).
func TestAddresses(t *testing.T) {
	m := machine{virtiotest.New(t, newDevice(t, 1, target(newRAM(1<<20), false), target(newRAM(2<<20), false)), virtiotest.Options{}), t}
	tur, inquiry := []byte{opTestUnitReady}, []byte{opInquiry, 0, 0, 0, 36}
	for _, lun := range [][8]byte{{}, {0, 0, 0x40}, {2, 0, 0x40}, {1, 2, 0x40}, {1, 255, 0x40}, {0xc1, 1}, {255, 255, 255, 255, 255, 255, 255, 255}} {
		if a := m.send(lun, tur, nil, 0); a.response != VIRTIO_SCSI_S_BAD_TARGET {
			t.Errorf("%x: %+v", lun, a)
		}
	}
	for _, lun := range [][8]byte{{1, 0, 0x40, 1}, {1, 1, 0x7f, 255}, {1, 0, 0, 9}, {1, 0, 0x80, 0}} {
		if a := m.send(lun, tur, nil, 0); a.code() != senseNoUnit {
			t.Errorf("%x: %+v", lun, a)
		}
		if a := m.send(lun, inquiry, nil, 36); a.status != 0 || a.in[0] != 0x7f {
			t.Errorf("%x: INQUIRY %x", lun, a.in)
		}
		if a := m.send(lun, []byte{opReportLUNs, 0, 0, 0, 0, 0, 0, 0, 0, 16}, nil, 16); a.status != 0 || a.in[3] != 8 {
			t.Errorf("%x: LUNs %x", lun, a.in)
		}
	}
	// Each unit has a unit attention of its own, which INQUIRY leaves alone.
	for target := range byte(2) {
		lun := [8]byte{1, target, 0, 0}
		if a := m.send(lun, inquiry, nil, 36); a.status != 0 {
			t.Errorf("target %d: %+v", target, a)
		}
		if a := m.send(lun, tur, nil, 0); a.code() != sensePowerOn {
			t.Errorf("target %d: %+v", target, a)
		}
		if a := m.send(lun, rw10(opReadCapacity10, 0, 0), nil, 8); a.in[2] != 7+8*target {
			t.Errorf("target %d: capacity %x", target, a.in)
		}
	}
}

// Headers that are none, and sizes that the driver made up.
func TestHeaders(t *testing.T) {
	m := start(t, newRAM(1<<20), false)
	q := m.Queue[firstRequests]
	u := q.Do([][]byte{make([]byte, 10)}, []int{200})
	if response(u.In[0][11]) != VIRTIO_SCSI_S_FAILURE {
		t.Errorf("short header: %x", u.In[0][:12])
	}
	// §5.6.6.1.2: data both ways needs VIRTIO_SCSI_F_INOUT, which is not offered.
	if a := m.send(lun0, rw10(opRead10, 0, 1), make([]byte, 512), 512); a.response != VIRTIO_SCSI_S_FAILURE || a.residual != 1024 {
		t.Errorf("data both ways: %+v", a)
	}
	q.Do([][]byte{header(lun0)}, []int{5})
	q.Do([][]byte{header(lun0)}, nil)
	q.Do(nil, []int{200})
	m.Device.WriteConfig(configSenseSize, []byte{255, 255, 255, 255})
	m.Device.WriteConfig(configCDBSize, []byte{255, 255, 255, 255})
	q.Do([][]byte{header(lun0)}, []int{200})
	m.Device.WriteConfig(configSenseSize, []byte{4, 0, 0, 0})
	m.Device.WriteConfig(configCDBSize, []byte{6, 0, 0, 0})
	u = q.Do([][]byte{append(make([]byte, 0, 25), header(lun0, 0xff)[:requestHeader+6]...)}, []int{responseHeader + 4, 100})
	if u.In[0][10] != statusCheckCondition || binary.LittleEndian.Uint32(u.In[0]) != 4 || u.In[1][0] != virtqtest.Fill {
		t.Errorf("short sense: %x", u.In[0])
	}
	if m.NeedsReset() {
		t.Error("needs reset")
	}
}

func TestReadOnly(t *testing.T) {
	img := &fakedisk.RAM{Data: make([]byte, 1<<20), NoWrites: true}
	m := start(t, img, false)
	block := make([]byte, 512)
	for _, a := range []answer{m.put(block, rw10(opWrite10, 0, 1)...), m.put(block, rw10(opWriteSame10, 0, 1)...)} {
		if a.code() != senseWriteProtected {
			t.Errorf("%+v", a)
		}
	}
	if a := m.cdb(64, opModeSense6, 8, 0x3f, 0, 64); a.in[2]&0x80 == 0 {
		t.Errorf("not write protected: %x", a.in)
	}
	if s := img.Settled(); s.Discards != nil || s.Zeroes != nil {
		t.Error("image changed")
	}
}

// SBC-3 §4.15: FUA, the cache page and SYNCHRONIZE CACHE.
func TestWriteCache(t *testing.T) {
	img := newRAM(1 << 20)
	m := start(t, img, false)
	block := make([]byte, 512)
	write := func(flags byte) { c := rw10(opWrite10, 0, 1); c[1] = flags; m.put(block, c...) }
	write(0)
	if !img.Dirty() {
		t.Error("write-back flushed")
	}
	write(8)
	if img.Dirty() {
		t.Error("FUA did not flush")
	}
	write(0)
	m.cdb(0, rw10(opSyncCache10, 0, 0)...)
	if img.Dirty() {
		t.Error("SYNCHRONIZE CACHE did not flush")
	}
	write(0)
	page := append([]byte{0, 0, 0, 0, pageCaching, cachingSize - 2}, make([]byte, cachingSize-2)...)
	if a := m.put(page, opModeSelect6, 0x10, 0, 0, byte(len(page))); a.status != 0 || img.Dirty() {
		t.Errorf("cache off: %+v", a)
	}
	write(0)
	if a := m.cdb(64, opModeSense6, 8, pageCaching, 0, 64); img.Dirty() || a.in[6] != 0 {
		t.Errorf("cache is off: %x", a.in)
	}
	m.Reset()
	if err := m.Activate(); err != nil {
		t.Fatal(err)
	}
	m.cdb(0, opTestUnitReady)
	write(0)
	if !img.Dirty() {
		t.Error("write-through after reset")
	}
}

// The host's errors reach the guest, and the device lives on.
func TestHostErrors(t *testing.T) {
	img := newRAM(1 << 20)
	m := start(t, img, false)
	block := make([]byte, 512)
	img.Fail(errors.New("input/output error"))
	if a := m.cdb(512, rw10(opRead10, 0, 1)...); a.code() != senseReadError {
		t.Errorf("read: %+v", a)
	}
	if a := m.put(block, rw10(opWrite10, 0, 1)...); a.code() != senseWriteError {
		t.Errorf("write: %+v", a)
	}
	img.Fail(syscall.ENOSPC)
	if a := m.put(block, rw10(opWrite10, 0, 1)...); a.code() != senseSpaceAllocation {
		t.Errorf("full: %+v", a)
	}
	img.Fail(nil)
	if a := m.put(block, rw10(opWrite10, 0, 1)...); a.status != 0 {
		t.Errorf("afterwards: %+v", a)
	}
}

// MMC-6: a CD-ROM drive has blocks of 2048 bytes and takes no writes.
func TestCD(t *testing.T) {
	img := newRAM(1<<20 + 512)
	copy(img.Data[2048:], "second block")
	m := start(t, img, true)
	if a := m.cdb(36, opInquiry, 0, 0, 0, 36); a.in[0] != 5 || a.in[1] != 0x80 {
		t.Errorf("INQUIRY %x", a.in)
	}
	if a := m.cdb(8, rw10(opReadCapacity10, 0, 0)...); string(a.in) != "\x00\x00\x01\xff\x00\x00\x08\x00" {
		t.Errorf("capacity %x", a.in)
	}
	if a := m.cdb(2048, rw10(opRead10, 1, 1)...); string(a.in[:12]) != "second block" {
		t.Errorf("read %q", a.in[:12])
	}
	if a := m.cdb(2048, rw10(opRead10, 512, 1)...); a.code() != senseLBARange {
		t.Errorf("half a block: %+v", a)
	}
	for _, c := range [][]byte{rw10(opWrite10, 0, 1), {opWrite6, 0, 0, 0, 1}} {
		if a := m.put(make([]byte, 2048), c...); a.code() != senseWriteProtected {
			t.Errorf("write: %+v", a)
		}
	}
	for _, op := range []byte{opUnmap, opWriteSame10, opModeSelect6} {
		if a := m.put(make([]byte, 2048), op, 0x10, 0, 0, 24, 0, 0, 0, 24, 0); a.code() != senseOpcode {
			t.Errorf("opcode %#x: %+v", op, a)
		}
	}
	if a := m.cdb(64, opReadTOC, 0, 0, 0, 0, 0, 0, 0, 64); string(a.in[:20]) != "\x00\x12\x01\x01\x00\x14\x01\x00\x00\x00\x00\x00\x00\x14\xaa\x00\x00\x00\x02\x00" {
		t.Errorf("TOC %x", a.in[:20])
	}
	if a := m.cdb(64, opReadTOC, 2, 0, 0, 0, 0, 0xaa, 0, 64); string(a.in[:12]) != "\x00\x0a\x01\x01\x00\x14\xaa\x00\x00\x00\x08\x3e" { // 512+150 frames
		t.Errorf("TOC %x", a.in[:12])
	}
	if a := m.cdb(64, opReadTOC, 0, 0, 0, 0, 0, 5, 0, 64); a.code() != senseField {
		t.Errorf("TOC of track 5: %+v", a)
	}
	if a := m.cdb(64, opGetConfig, 0, 0, 0, 0, 0, 0, 0, 64); a.in[3] != 36 || a.in[7] != profileCD || a.in[18] != 1 || a.in[14] != 0 {
		t.Errorf("configuration %x", a.in)
	}
	if a := m.cdb(64, opGetConfig, 2, 0, featureCore, 0, 0, 0, 0, 64); a.in[3] != 16 || a.in[9] != featureCore {
		t.Errorf("one feature %x", a.in)
	}
	if a := m.cdb(8, opGetEvent, 1, 0, 0, 0x10, 0, 0, 0, 8); string(a.in) != "\x00\x06\x04\x10\x00\x02\x00\x00" {
		t.Errorf("event %x", a.in)
	}
	if a := m.cdb(8, opGetEvent, 0, 0, 0, 0x10, 0, 0, 0, 8); a.code() != senseField {
		t.Errorf("event without polling: %+v", a)
	}
	if a := m.cdb(34, opReadDiscInfo, 0, 0, 0, 0, 0, 0, 0, 34); a.in[1] != 32 || a.in[2] != 0x0e {
		t.Errorf("disc %x", a.in)
	}
	if a := m.cdb(64, opModeSense6, 0, 0x2a, 0, 64); a.in[4] != 0x2a || a.in[3] != 0 {
		t.Errorf("capabilities %x", a.in)
	}
}

// §5.6.6.2: task management functions return when the tasks are done.
func TestTaskManagement(t *testing.T) {
	img := newRAM(1 << 20)
	m := start(t, img, false)
	tmf := func(subtype uint32, lun [8]byte) []byte {
		b := make([]byte, 4, tmfSize)
		b = binary.LittleEndian.AppendUint32(b, subtype)
		b = append(b, lun[:]...)
		return append(b, make([]byte, 8)...)
	}
	control := m.Queue[controlQueue]
	img.Gate = make(chan struct{})
	for range 5 {
		m.Queue[firstRequests].Add([][]byte{header(lun0, rw10(opRead10, 0, 1)...)}, []int{responseHeader + defaultSenseSize, 512})
	}
	m.Queue[firstRequests].Kick()
	img.Gate <- struct{}{} // one has been carried out
	control.Add([][]byte{tmf(tmfUnitReset, lun0)}, []int{1})
	control.Kick()
	time.Sleep(20 * time.Millisecond)
	early := m.Queue[controlQueue].Interrupts()
	close(img.Gate)
	if u := control.Wait(); response(u.In[0][0]) != VIRTIO_SCSI_S_FUNCTION_COMPLETE || early != 0 {
		t.Errorf("reset: %d, answered before the tasks: %v", u.In[0][0], early)
	}
	for m.Queue[firstRequests].InFlight() > 0 {
		m.Queue[firstRequests].Wait()
	}
	if a := m.cdb(0, opTestUnitReady); a.code() != sensePowerOn {
		t.Errorf("after reset: %+v", a)
	}
	for _, c := range []struct {
		out  []byte
		in   int
		at   int
		want response
	}{
		{tmf(tmfAbortTask, lun0), 1, 0, VIRTIO_SCSI_S_FUNCTION_COMPLETE}, {tmf(tmfQueryTask, lun0), 1, 0, VIRTIO_SCSI_S_FUNCTION_COMPLETE},
		{tmf(tmfClearACA, lun0), 1, 0, VIRTIO_SCSI_S_FUNCTION_REJECTED}, {tmf(99, lun0), 1, 0, VIRTIO_SCSI_S_FUNCTION_REJECTED},
		{tmf(tmfAbortTask, [8]byte{1, 3}), 1, 0, VIRTIO_SCSI_S_BAD_TARGET}, {tmf(tmfAbortTask, [8]byte{1, 0, 0x40, 2}), 1, 0, VIRTIO_SCSI_S_INCORRECT_LUN},
		{append([]byte{1, 0, 0, 0}, append(lun0[:], 0, 0, 0, 0)...), 5, 4, VIRTIO_SCSI_S_OK}, {append([]byte{2, 0, 0, 0}, make([]byte, 12)...), 5, 4, VIRTIO_SCSI_S_BAD_TARGET},
		{[]byte{9, 0, 0, 0}, 5, 4, VIRTIO_SCSI_S_FAILURE}, {tmf(0, lun0)[:10], 1, 0, VIRTIO_SCSI_S_FAILURE},
	} {
		if u := control.Do([][]byte{c.out}, []int{c.in}); response(u.In[0][c.at]) != c.want {
			t.Errorf("%x: %x, want %d", c.out, u.In[0], c.want)
		}
	}
	control.Do([][]byte{tmf(0, lun0)}, nil)
}

// Resets at any time, with commands in flight on several queues.
func TestResets(t *testing.T) { resets(t, 60) }

// Ten thousand resets under load, the long suite's.
func TestLongResets(t *testing.T) { virtiotest.LongResets(t, resets) }

func resets(t *testing.T, n int) {
	t.Helper()
	m := machine{virtiotest.New(t, newDevice(t, 3, target(newRAM(1<<20), false), target(newRAM(1<<20), false)), virtiotest.Options{EventIdx: true, Size: 64}), t}
	for range n {
		for qi, q := range m.Queue[firstRequests:] {
			for i := range 10 {
				q.Add([][]byte{header([8]byte{1, byte(i % 2), 0x40}, rw10(opWrite10, uint32(qi*10+i), 1)...), make([]byte, 512)}, []int{responseHeader + defaultSenseSize})
			}
			q.Kick()
		}
		m.Queue[firstRequests+1].Wait()
		m.Reset()
		if err := m.Activate(); err != nil {
			t.Fatal(err)
		}
	}
}

func read4K(m *virtiotest.Machine) []virtqtest.Desc {
	h := header(lun0, rw10(opRead10, 8, 8)...)
	head, resp, data := m.Mem.Alloc(uint64(len(h))), m.Mem.Alloc(responseHeader+defaultSenseSize), m.Mem.Alloc(4096)
	copy(m.Mem.Bytes(head, uint64(len(h))), h)
	return []virtqtest.Desc{
		{Addr: head, Len: uint32(len(h))}, {Addr: resp, Len: responseHeader + defaultSenseSize, Flags: virtqtest.DescWrite}, {Addr: data, Len: 4096, Flags: virtqtest.DescWrite},
	}
}

func TestAllocs(t *testing.T) {
	for _, img := range []disk.Image{fakedisk.Null{RAM: newRAM(1 << 20)}, newRAM(1 << 20)} {
		m := start(t, img, false)
		if n := testing.AllocsPerRun(300, m.Queue[firstRequests].Again(read4K(m.Machine)...)); n != 0 {
			t.Errorf("%T: %v allocations per command", img, n)
		}
	}
}

// BenchmarkDevice4K is the device's own time per 4 KiB read, system call taken
// out: bursts of 64 commands, so that the wake-up is shared.
func BenchmarkDevice4K(b *testing.B) {
	m := virtiotest.New(b, newDevice(b, 1, target(fakedisk.Null{RAM: newRAM(1 << 20)}, false)), virtiotest.Options{})
	s := m.Queue[firstRequests].Split
	const burst = 64
	for i := range burst {
		for j, d := range read4K(m) {
			if j < 2 {
				d.Flags |= virtqtest.DescNext
				d.Next = uint16(3*i + j + 1)
			}
			s.SetDesc(3*i+j, d)
		}
	}
	idx := uint16(0)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N/burst + 1 {
		for i := range uint16(burst) {
			s.SetAvail(idx+i, 3*i)
		}
		idx += burst
		s.SetAvailIdx(idx)
		m.Queue[firstRequests].Bell.Ring()
		for s.UsedIdx() != idx {
			time.Sleep(time.Microsecond)
		}
	}
}

// FuzzCommand: any CDB with any data, to a disk and to a CD-ROM drive.
func FuzzCommand(f *testing.F) {
	f.Add(rw10(opRead10, 0, 1), []byte{}, uint16(512), false)
	f.Add([]byte{opModeSelect6, 0x10, 0, 0, 24}, append([]byte{0, 0, 0, 0, 8, 18}, make([]byte, 18)...), uint16(0), false)
	f.Add([]byte{opUnmap, 0, 0, 0, 0, 0, 0, 0, 24, 0}, make([]byte, 24), uint16(0), false)
	f.Add([]byte{opReadTOC, 2, 0, 0, 0, 0, 0xaa, 0, 64}, []byte{}, uint16(64), true)
	f.Add([]byte{opGetConfig, 0, 0, 0, 0, 0, 0, 0, 64}, []byte{}, uint16(64), true)
	f.Fuzz(func(t *testing.T, cdb, out []byte, in uint16, cd bool) {
		m := start(t, newRAM(64<<10), cd)
		if len(cdb) > defaultCDBSize {
			cdb = cdb[:defaultCDBSize]
		}
		m.send(lun0, cdb, out, int(in))
		if a := m.cdb(36, opInquiry, 0, 0, 0, 36); a.response != VIRTIO_SCSI_S_OK {
			t.Errorf("INQUIRY afterwards: %+v", a)
		}
	})
}

// FuzzControl: any control request.
func FuzzControl(f *testing.F) {
	f.Add(make([]byte, tmfSize), uint8(1))
	f.Add([]byte{1, 0, 0, 0, 1, 0, 0x40, 0, 0, 0, 0, 0, 0, 0, 0, 0}, uint8(5))
	f.Fuzz(func(t *testing.T, out []byte, in uint8) {
		m := start(t, newRAM(64<<10), false)
		if len(out) == 0 {
			return
		}
		m.Queue[controlQueue].Do([][]byte{out}, []int{int(in) + 1})
	})
}

// TestInline: while the worker waits, the CPU that rings is given its answer at once.
func TestInline(t *testing.T) {
	m := start(t, newRAM(1<<20), false)
	q := m.Queue[firstRequests]
	at := 0
	for range 200 {
		q.Add([][]byte{header(lun0, opInquiry, 0, 0, 0, 36)}, []int{responseHeader + defaultSenseSize, 36})
		q.Kick()
		u, ok := q.Used()
		if ok {
			at++
		} else {
			u = q.Wait()
		}
		if response(u.In[0][11]) != VIRTIO_SCSI_S_OK || string(u.In[1][8:16]) == "" {
			t.Fatalf("%x", u.In[0][:12])
		}
		time.Sleep(50 * time.Microsecond) // the worker waits again
	}
	if at == 0 {
		t.Error("no command was answered on the CPU's thread")
	}
	t.Logf("%d of 200", at)
}
