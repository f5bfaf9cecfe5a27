package identity

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
)

// generationApp is systemd-vmspawn's application ID for generation identifiers.
var generationApp = [16]byte{0xbd, 0x84, 0x6d, 0xe3, 0xe4, 0x7d, 0x4b, 0x6c, 0xa6, 0x85, 0x4a, 0x87, 0x0f, 0x3c, 0xa3, 0xa0}

// Generation is a machine's generation identifier (VMGENID): derived from the
// invocation ID of the service that we run in, as systemd-vmspawn does it, or
// random without one.
func Generation(invocation string) (id [16]byte) {
	base, err := hex.DecodeString(invocation)
	if err != nil || len(base) != len(id) || [16]byte(base) == [16]byte{} {
		rand.Read(id[:]) //nolint:errcheck // it never fails
		return uuid4(id)
	}
	return AppSpecific([16]byte(base), generationApp)
}

// AppSpecific is the identifier that an application derives from another
// (sd_id128_get_app_specific(3)).
func AppSpecific(base, app [16]byte) [16]byte {
	mac := hmac.New(sha256.New, base[:])
	mac.Write(app[:])
	return uuid4([16]byte(mac.Sum(nil)))
}

// uuid4 marks an identifier as a random one (RFC 9562 §5.4).
func uuid4(id [16]byte) [16]byte {
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return id
}
