package aml

import (
	"encoding/hex"
	"strings"
	"testing"
)

// TestEncodings holds the encoder to the byte strings that ACPI 6.5 chapter 20
// and §6.4 prescribe.
func TestEncodings(t *testing.T) {
	for _, c := range []struct {
		name string
		got  Term
		want string
	}{
		{"20.2.3 ZeroOp", Integer(0), "00"},
		{"20.2.3 OneOp", Integer(1), "01"},
		{"20.2.3 OnesOp", Integer(^uint64(0)), "ff"},
		{"20.2.3 ByteConst", Integer(0xff), "0aff"},
		{"20.2.3 WordConst", Integer(0x100), "0b0001"},
		{"20.2.3 DWordConst", Integer(0x1_0000), "0c00000100"},
		{"20.2.3 QWordConst", Integer(0x1_0000_0000), "0e0000000001000000"},
		{"20.2.3 String", String("AB"), "0d414200"},
		{"20.2.2 NullName", Path(""), "00"},
		{"20.2.2 NameSeg", Path("_S5"), "5f53355f"},
		{"20.2.2 RootChar", Path(`\_SB`), "5c5f53425f"},
		{"20.2.2 PrefixPath", Path("^^AB"), "5e5e41425f5f"},
		{"20.2.2 DualNamePath", Path("A.B"), "2e415f5f5f425f5f5f"},
		{"20.2.2 MultiNamePath", Path(`\A.B.C`), "5c2f03415f5f5f425f5f5f435f5f5f"},
		{"19.3.4 PNP0A08", EISAID("PNP0A08"), "0c41d00a08"},
		{"20.2.5.4 DefBuffer", Buffer([]byte{7}), "11030107"},
		{"20.2.5.4 DefPackage", Package(Integer(5), Integer(0)), "1205020a0500"},
		{"20.2.5.1 DefName", Name("X", Integer(1)), "08585f5f5f01"},
		{"20.2.5.2 DefDevice", Device("X"), "5b8205585f5f5f"},
		{"20.2.5.2 DefMethod", Method("X", 2, true, Return(Arg(1))), "1408585f5f5f0aa469"},
		{"20.2.5.2 DefOpRegion", OperationRegion("X", SystemIO, 0x600, 1), "5b80585f5f5f010b000601"},
		{"20.2.5.2 DefField", Field("X", ByteAcc, FieldUnit{Bits: 8}, FieldUnit{"Y", 64}), "5b810e585f5f5f010008595f5f5f4004"},
		{"20.2.5.3 DefNotify", Notify("X", 0x80), "86585f5f5f0a80"},
		{"20.2.5.4 DefIf", If(Equal(Local(0), Arg(0)), Store(Local(1), Local(2))), "a007936068706162"},
		{"20.2.5.4 DefAnd", And(Local(0), Integer(1)), "7b600100"},
		{"6.4.2.5 I/O port", IO(0x3f8, 8), "4701f803f8030108"},
		{"6.4.2.1 IRQ", IRQNoFlags(4), "221000"},
		{"6.4.3.6 extended interrupt", Interrupt(Level, 9), "890600010109000000"},
		{"6.4.3.4 memory", Memory32Fixed(0xe000_0000, 0x10_0000), "86090001000000e000001000"},
		{"6.4.3.5.3 bus", WordBusNumber(0, 15), "880d00020c00000000000f0000001000"},
	} {
		if got := hex.EncodeToString(c.got); got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
}

// TestPkgLength proves §20.2.4 at the borders of each length: the value counts
// its own bytes, and the shortest form is used.
func TestPkgLength(t *testing.T) {
	for _, c := range []struct {
		body int
		lead string
	}{
		{0, "01"}, {62, "3f"},
		{63, "4104"}, {0xfff - 2, "4fff"},
		{0xfff - 1, "810001"}, {0xfffff - 3, "8fffff"},
		{0xfffff - 2, "c1000001"},
	} {
		p := pkg(make(Term, c.body))
		if got := hex.EncodeToString(p[:len(p)-c.body]); got != c.lead {
			t.Errorf("body of %#x: length %s, want %s", c.body, got, c.lead)
		}
	}
}

// TestVarPackage: §20.2.5.4, more than 255 elements need a VarPackage.
func TestVarPackage(t *testing.T) {
	p := Package(make([]Term, 255)...)
	v := Package(make([]Term, 256)...)
	if p[0] != opPackage || v[0] != opVarPackage {
		t.Errorf("255 elements: %#x, 256: %#x", p[0], v[0])
	}
}

func TestMalformedNamesPanic(t *testing.T) {
	for _, f := range []func(){
		func() { Path("TOOLONG") },
		func() { Path("1A") },
		func() { Path("a") },
		func() { Path("A..B") },
		func() { Path(strings.Repeat("A.", 300) + "A") },
		func() { EISAID("PNP0A0") },
		func() { EISAID("pnp0A08") },
		func() { String("a\x00") },
		func() { Method("X", 8, false) },
		func() { Arg(7) },
		func() { Local(8) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			f()
		}()
	}
}
