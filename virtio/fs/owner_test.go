package fs

import "testing"

// TestOwner: one user of the host and its group have one id in the guest, and
// nobody else has any.
func TestOwner(t *testing.T) {
	o := &Owner{HostUID: 1000, HostGID: 100, Guest: 60514}
	h := &hostAccess{uid: 0, gid: 0, privileged: true}
	if err := h.setIDs(&Config{Owner: o}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		kind        idKind
		host, guest uint32
	}{{ofUser, 1000, 60514}, {ofGroup, 100, 60514}, {ofUser, 0, overflowID}, {ofUser, 100, overflowID}, {ofGroup, 1000, overflowID}, {ofUser, 60514, overflowID}} {
		if got := h.guestID(c.host, c.kind); got != c.guest {
			t.Errorf("kind %d, host %d: guest %d, want %d", c.kind, c.host, got, c.guest)
		}
	}
	for _, c := range []struct {
		kind        idKind
		guest, host uint32
		ok          bool
	}{{ofUser, 60514, 1000, true}, {ofGroup, 60514, 100, true}, {ofUser, 0, 0, false}, {ofGroup, 0, 0, false}, {ofUser, 1000, 0, false}, {ofUser, 60515, 0, false}} {
		if got, ok := h.hostID(c.guest, c.kind); ok != c.ok || ok && got != c.host {
			t.Errorf("kind %d, guest %d: host %d %v", c.kind, c.guest, got, ok)
		}
	}

	// Without privileges it has to be ourselves.
	h = &hostAccess{uid: 1000, gid: 100}
	if err := h.setIDs(&Config{Owner: o}); err != nil {
		t.Fatal(err)
	}
	if got := h.guestID(1000, ofUser); got != 60514 {
		t.Error(got)
	}
	if got, ok := h.hostID(60514, ofGroup); got != 100 || !ok {
		t.Error(got, ok)
	}
	if err := h.setIDs(&Config{Owner: &Owner{HostUID: 1001}}); err == nil {
		t.Error("another user's files without privileges")
	}
	if err := h.setIDs(&Config{IDMap: IDMap{Shift: 1, Range: 1}}); err == nil {
		t.Error("an id map without privileges")
	}
}
