// Package aml encodes ACPI Machine Language, the byte code of ACPI's
// Differentiated System Description Table.
//
// A [Term] is the finished encoding of one object or statement; bigger terms
// are made from smaller ones. The names follow ASL, the source language that
// `iasl -d` shows. Section numbers are those of ACPI 6.5 (2022).
//
// Arguments come from this program, not from a guest: a malformed name, which
// no ASL could spell, is a panic.
package aml

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// Term is encoded AML: an object, a statement or a list of them.
type Term []byte

// Opcodes (§20.3, table 20.4).
const (
	opZero         = 0x00
	opOne          = 0x01
	opName         = 0x08
	opByte         = 0x0a
	opWord         = 0x0b
	opDWord        = 0x0c
	opString       = 0x0d
	opQWord        = 0x0e
	opScope        = 0x10
	opBuffer       = 0x11
	opPackage      = 0x12
	opVarPackage   = 0x13
	opMethod       = 0x14
	opDualName     = 0x2e
	opMultiName    = 0x2f
	opExt          = 0x5b
	opRoot         = 0x5c
	opParent       = 0x5e
	opLocal0       = 0x60
	opArg0         = 0x68
	opStore        = 0x70
	opAnd          = 0x7b
	opOr           = 0x7d
	opNotify       = 0x86
	opCreateDWord  = 0x8a
	opLNot         = 0x92
	opLEqual       = 0x93
	opIf           = 0xa0
	opElse         = 0xa1
	opReturn       = 0xa4
	opOnes         = 0xff
	opExtOpRegion  = 0x80
	opExtField     = 0x81
	opExtDevice    = 0x82
	maxMethodArgs  = 7
	maxMethodLocal = 8
)

// join concatenates encodings.
func join(parts ...Term) Term {
	var t Term
	for _, p := range parts {
		t = append(t, p...)
	}
	return t
}

// List is several terms as one.
func List(terms ...Term) Term { return join(terms...) }

// pkg prefixes body with its PkgLength, which counts itself (§20.2.4): one
// byte up to 63, else two to four bytes.
func pkg(body Term) Term {
	n := len(body)
	if n+1 < 1<<6 {
		return join(Term{byte(n + 1)}, body)
	}
	for size := 2; size <= 4; size++ {
		if n+size < 1<<(8*size-4) {
			return join(pkgLead(n+size, size), body)
		}
	}
	panic(fmt.Sprintf("aml: a package of %d bytes is too long", n))
}

// pkgLead encodes a PkgLength of size bytes: the count of further bytes in
// bits 6 and 7, the low four bits of the value, then the rest.
func pkgLead(value, size int) Term {
	t := Term{byte((size-1)<<6 | value&0xf)}
	for v := value >> 4; len(t) < size; v >>= 8 {
		t = append(t, byte(v))
	}
	return t
}

// Path is a NameString (§20.2.2): segments of up to four characters separated
// by dots, after `\` for the root or `^` for each parent.
func Path(path string) Term {
	var t Term
	rest := path
	if strings.HasPrefix(rest, `\`) {
		t, rest = append(t, opRoot), rest[1:]
	}
	for strings.HasPrefix(rest, "^") {
		t, rest = append(t, opParent), rest[1:]
	}
	if rest == "" {
		return append(t, 0) // NullName
	}
	segs := strings.Split(rest, ".")
	switch n := len(segs); {
	case n == 2:
		t = append(t, opDualName)
	case n > 255:
		panic("aml: path " + path + " is too long")
	case n > 2:
		t = append(t, opMultiName, byte(n))
	}
	for _, s := range segs {
		t = append(t, nameSeg(s)...)
	}
	return t
}

// nameSeg is one segment: a letter or underscore, then letters, digits and
// underscores, filled up to four characters with underscores.
func nameSeg(s string) Term {
	ok := len(s) >= 1 && len(s) <= 4
	for i, c := range s {
		letter := c == '_' || c >= 'A' && c <= 'Z'
		ok = ok && (letter || i > 0 && c >= '0' && c <= '9')
	}
	if !ok {
		panic(fmt.Sprintf("aml: %q is no name segment", s))
	}
	return Term(s + "____"[len(s):])
}

// Integer is a constant in its shortest encoding (§20.2.3).
func Integer(v uint64) Term {
	switch {
	case v == 0:
		return Term{opZero}
	case v == 1:
		return Term{opOne}
	case v == ^uint64(0):
		return Term{opOnes}
	case v <= 0xff:
		return Term{opByte, byte(v)}
	case v <= 0xffff:
		return binary.LittleEndian.AppendUint16(Term{opWord}, uint16(v))
	case v <= 0xffff_ffff:
		return binary.LittleEndian.AppendUint32(Term{opDWord}, uint32(v))
	}
	return binary.LittleEndian.AppendUint64(Term{opQWord}, v)
}

// DWord is an integer of four bytes whatever its value, for a place that is
// written to later.
func DWord(v uint32) Term { return binary.LittleEndian.AppendUint32(Term{opDWord}, v) }

// String is an ASCII string constant without NUL.
func String(s string) Term {
	for _, c := range []byte(s) {
		if c == 0 || c > 0x7f {
			panic(fmt.Sprintf("aml: %q is no ASCII string", s))
		}
	}
	return append(append(Term{opString}, s...), 0)
}

// Buffer is a byte array constant.
func Buffer(b []byte) Term {
	return join(Term{opBuffer}, pkg(join(Integer(uint64(len(b))), b)))
}

// Package is an array of objects. More than 255 become a VarPackage.
func Package(elems ...Term) Term {
	if n := len(elems); n > 255 {
		return join(Term{opVarPackage}, pkg(join(Integer(uint64(n)), join(elems...))))
	}
	return join(Term{opPackage}, pkg(join(Term{byte(len(elems))}, join(elems...))))
}

// EISAID is a compressed EISA identifier such as "PNP0A08" (§6.1.5 _HID,
// §19.3.4): three letters and four upper-case hexadecimal digits.
func EISAID(id string) Term {
	bad := len(id) != 7
	var v uint32
	for i, c := range []byte(id) {
		switch {
		case i < 3 && c >= 'A' && c <= 'Z':
			v = v<<5 | uint32(c-'A'+1)
		case i >= 3 && c >= '0' && c <= '9':
			v = v<<4 | uint32(c-'0')
		case i >= 3 && c >= 'A' && c <= 'F':
			v = v<<4 | uint32(c-'A'+10)
		default:
			bad = true
		}
	}
	if bad {
		panic(fmt.Sprintf("aml: %q is no EISA ID", id))
	}
	// The identifier is stored big-endian in a DWord constant.
	return binary.BigEndian.AppendUint32(Term{opDWord}, v)
}

// UUID is the buffer that ASL's ToUUID makes (§19.6.142): the first three
// groups little-endian, the other two as written.
func UUID(u [16]byte) Term {
	return Buffer([]byte{u[3], u[2], u[1], u[0], u[5], u[4], u[7], u[6],
		u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]})
}

// Name declares a named object.
func Name(path string, object Term) Term { return join(Term{opName}, Path(path), object) }

// Scope opens an existing namespace object.
func Scope(path string, terms ...Term) Term {
	return join(Term{opScope}, pkg(join(Path(path), join(terms...))))
}

// Device declares a device.
func Device(path string, terms ...Term) Term {
	return join(Term{opExt, opExtDevice}, pkg(join(Path(path), join(terms...))))
}

// Method declares a control method of up to 7 arguments. A serialized one is
// run by one thread at a time, which one that creates names must be.
func Method(path string, args int, serialized bool, body ...Term) Term {
	if args < 0 || args > maxMethodArgs {
		panic("aml: bad number of arguments of " + path)
	}
	flags := byte(args)
	if serialized {
		flags |= 1 << 3
	}
	return join(Term{opMethod}, pkg(join(Path(path), Term{flags}, join(body...))))
}

// Space is the address space of an operation region (§19.6.100).
type Space byte

// Address spaces.
const (
	SystemMemory Space = 0
	SystemIO     Space = 1
)

// OperationRegion declares size bytes at addr of a space.
func OperationRegion(path string, s Space, addr, size uint64) Term {
	return join(Term{opExt, opExtOpRegion}, Path(path), Term{byte(s)}, Integer(addr), Integer(size))
}

// Access is the access width of a field's registers (§19.6.48).
type Access byte

// Access widths.
const (
	ByteAcc  Access = 1
	WordAcc  Access = 2
	DWordAcc Access = 3
)

// FieldUnit is a register of Bits bits in a field; without a Name it is a gap.
type FieldUnit struct {
	Name string
	Bits int
}

// Field declares the registers of a region, from bit 0 up, read and written
// without a lock; bits beside a written field are kept.
func Field(region string, a Access, units ...FieldUnit) Term {
	body := append(Path(region), byte(a))
	for _, u := range units {
		if u.Name == "" {
			body = append(body, 0)
		} else {
			body = append(body, nameSeg(u.Name)...)
		}
		body = append(body, bitLength(u.Bits)...)
	}
	return join(Term{opExt, opExtField}, pkg(body))
}

// bitLength is a PkgLength that counts bits and not itself.
func bitLength(n int) Term {
	switch {
	case n < 1<<6:
		return Term{byte(n)}
	case n < 1<<12:
		return pkgLead(n, 2)
	}
	return pkgLead(n, 3)
}
