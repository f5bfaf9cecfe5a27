package uefi

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Vendors of variables that people know (UEFI 2.10 §3.3, §32.6.1; EDK II).
var vendors = map[GUID]string{
	globalVariable: "global",
	imageSecurity:  "image-security",
	parseGUID("f0a30bc7-af08-4556-99c4-001009c93a44"): "secure-boot-enable",
	parseGUID("c076ec0c-7028-4399-a072-71ee5c448b9f"): "custom-mode",
	parseGUID("605dab50-e046-4300-abb6-3dd810dd8b23"): "shim",
	parseGUID("4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"): "systemd-boot",
	parseGUID("eb704011-1402-11d3-8e77-00a0c969723b"): "memory-type",
}

var (
	globalVariable = parseGUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
	imageSecurity  = parseGUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")

	certX509   = parseGUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
	certSHA256 = parseGUID("c1c41626-504c-4092-aca9-41f936934328")
)

// VendorName is a short name for a well-known vendor, else the GUID.
func (v *Variable) VendorName() string {
	if name := vendors[v.Vendor]; name != "" {
		return name
	}
	return v.Vendor.String()
}

// Describe says what the value means, in a line without control characters.
func (v *Variable) Describe() string {
	switch {
	case v.Vendor == globalVariable && (v.Name == "BootOrder" || v.Name == "DriverOrder"):
		return v.order()
	case v.Vendor == globalVariable && (isOption(v.Name, "Boot") || isOption(v.Name, "Driver") || isOption(v.Name, "SysPrep")):
		return loadOption(v.Data)
	case v.Vendor == globalVariable && (v.Name == "PK" || v.Name == "KEK"), v.Vendor == imageSecurity:
		return signatures(v.Data)
	case v.Vendor == globalVariable && v.Name == "Timeout" && len(v.Data) == 2:
		return fmt.Sprintf("%d s", binary.LittleEndian.Uint16(v.Data))
	case len(v.Data) == 1:
		return fmt.Sprint(v.Data[0])
	}
	return plain(v.Data)
}

// order is a list of load options, as efibootmgr writes it.
func (v *Variable) order() string {
	var numbers []string
	for b := v.Data; len(b) >= 2; b = b[2:] {
		numbers = append(numbers, fmt.Sprintf("%04X", binary.LittleEndian.Uint16(b)))
	}
	return strings.Join(numbers, ",")
}

// isOption reports whether name is prefix and four hexadecimal digits.
func isOption(name, prefix string) bool {
	digits, ok := strings.CutPrefix(name, prefix)
	return ok && len(digits) == 4 && strings.Trim(digits, "0123456789ABCDEFabcdef") == ""
}

// loadOption is an EFI_LOAD_OPTION (UEFI 2.10 §3.1.3): its description and the
// file at the end of its device path, if there is one.
func loadOption(b []byte) string {
	if len(b) < 6 {
		return "damaged"
	}
	const active = 1 << 0
	s, state := ucs2(b[6:]), ""
	if binary.LittleEndian.Uint32(b)&active == 0 {
		state = " (inactive)"
	}
	paths := int(binary.LittleEndian.Uint16(b[4:]))
	for i := 6; i+1 < len(b); i += 2 {
		if b[i] == 0 && b[i+1] == 0 {
			rest := b[i+2:]
			if file := filePath(rest[:min(paths, len(rest))]); file != "" {
				s += " " + file
			}
			break
		}
	}
	return printable(s) + state
}

// filePath is the file of a device path's File Path node (UEFI 2.10 §10.3.5.4).
func filePath(b []byte) string {
	for len(b) >= 4 {
		n := int(binary.LittleEndian.Uint16(b[2:]))
		if n < 4 || n > len(b) {
			break
		}
		if b[0] == 4 && b[1] == 4 {
			return ucs2(b[4:n])
		}
		b = b[n:]
	}
	return ""
}

// signatures says what is in a signature database (UEFI 2.10 §32.4.1).
func signatures(b []byte) string {
	var parts []string
	hashes := 0
	for len(b) >= 28 {
		typ := GUID(b[:16])
		size, header, each := binary.LittleEndian.Uint32(b[16:]), binary.LittleEndian.Uint32(b[20:]), binary.LittleEndian.Uint32(b[24:])
		if size < 28 || uint64(size) > uint64(len(b)) || each < 16 || uint64(28)+uint64(header) > uint64(size) {
			parts = append(parts, "damaged")
			break
		}
		for list := b[28+header : size]; uint64(len(list)) >= uint64(each); list = list[each:] {
			switch typ {
			case certX509:
				parts = append(parts, certificate(list[16:each]))
			case certSHA256:
				hashes++
			default:
				parts = append(parts, "signature of type "+typ.String())
			}
		}
		b = b[size:]
	}
	if hashes > 0 {
		parts = append(parts, fmt.Sprintf("%d SHA-256 hashes", hashes))
	}
	if len(parts) == 0 {
		return "empty"
	}
	return strings.Join(parts, "; ")
}

// certificate is the name of whom a certificate is about.
func certificate(der []byte) string {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return "unreadable certificate"
	}
	if c.Subject.CommonName != "" {
		return printable(c.Subject.CommonName)
	}
	return printable(c.Subject.String())
}

// plain is text if the value looks like text, else the first bytes of it.
func plain(b []byte) string {
	if s := ucs2(b); len(s) > 1 && len(b) == 2*len(s)+2 && s == printable(s) {
		return s
	}
	if s := string(bytes.TrimRight(b, "\x00")); len(s) > 1 && utf8.ValidString(s) && s == printable(s) {
		return s
	}
	const most = 16
	if len(b) > most {
		return fmt.Sprintf("%x…", b[:most])
	}
	return fmt.Sprintf("%x", b)
}

// printable replaces what could disturb a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}
