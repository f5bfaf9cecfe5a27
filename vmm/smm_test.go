package vmm

import (
	"slices"
	"strings"
	"testing"

	"github.com/gvmspawn/gvmspawn/devices/pflash"
	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// TestSMMConfig: what a machine with System Management Mode cannot be is said in
// one sentence.
func TestSMMConfig(t *testing.T) {
	for _, tt := range []struct {
		cfg  Config
		want string
	}{
		{Config{CPUs: 1, RAM: 64 << 20}, "64 MiB of RAM are too little"},
	} {
		tt.cfg.Firmware = &Firmware{Code: "/x", SMM: true}
		if err := tt.cfg.check(); err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("error %v, want %q", err, tt.want)
		}
	}
}

// TestDebugPort: what firmware writes there comes out in whole lines, or pieces of a
// bounded length; a read tells that the port is there.
func TestDebugPort(t *testing.T) {
	var pieces []string
	d := &debugPort{out: writerFunc(func(p []byte) { pieces = append(pieces, string(p)) })}
	for _, c := range "SecCoreStart\n" + strings.Repeat("x", 300) {
		d.Write(0, 1, uint64(c))
	}
	d.flush()
	d.flush()
	if want := []string{"SecCoreStart\n", strings.Repeat("x", 256), strings.Repeat("x", 44)}; !slices.Equal(pieces, want) {
		t.Errorf("%q", pieces)
	}
	if v := d.Read(0, 1); v != 0xe9 {
		t.Errorf("reads %#x", v)
	}
	(&debugPort{}).Write(0, 1, 'x') // without a log
}

// writerFunc is an io.Writer.
type writerFunc func(p []byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }

// TestSMMFlash: the flash takes commands from CPUs in System Management Mode alone;
// the others read its content, whatever state it is in.
func TestSMMFlash(t *testing.T) {
	chip, err := pflash.New(pflash.Config{Content: make([]byte, 2*pflash.BlockSize)})
	if err != nil {
		t.Fatal(err)
	}
	var b bus.Bus
	const at = 0xffc0_0000
	if err := b.MMIO.Map("flash", at, 2*pflash.BlockSize, chip.ReadOnly()); err != nil {
		t.Fatal(err)
	}
	smm := smmIO{Bus: &b, flash: chip, base: at, size: 2 * pflash.BlockSize}
	const program, readArray = 0x40, 0xff
	b.MMIOWrite(at+4, 1, program)
	b.MMIOWrite(at+4, 1, 0x55)
	smm.MMIOWrite(at+8, 1, program)
	smm.MMIOWrite(at+8, 1, 0x66)
	if v := b.MMIORead(at+8, 4); v != 0x66 {
		t.Errorf("outside of SMM the content is %#x while the chip shows its status", v)
	}
	smm.MMIOWrite(at, 1, readArray)
	if v := smm.MMIORead(at+4, 1); v != 0 {
		t.Errorf("a CPU outside of SMM has written %#x", v)
	}
	if v := smm.MMIORead(at+8, 1); v != 0x66 {
		t.Errorf("a CPU in SMM has written %#x", v)
	}
	if v := smm.MMIORead(at+2*pflash.BlockSize, 1); v != 0xff {
		t.Errorf("behind the flash there is %#x", v)
	}
}
