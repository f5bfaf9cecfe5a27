package vmm

import (
	"bytes"
	"strings"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// TestChooseCredentials: SMBIOS as long as Linux can read it, else the initrd.
func TestChooseCredentials(t *testing.T) {
	small := []Credential{{"a.b", []byte("x\x00y\n:z")}}
	big := []Credential{{"big", bytes.Repeat([]byte("x"), 200<<10)}, {"s", []byte("mine")}}
	strs := []string{"note", "io.systemd.credential:t=text", "io.systemd.credential.binary:b=AAE=", "io.systemd.credential:s=not mine", "io.systemd.credential:../x=bad"}
	m := &Machine{mem: mem.New(), cfg: Config{Credentials: small}}
	if err := m.chooseCredentials(); err != nil || m.handOver != nil {
		t.Error(err, m.handOver)
	}
	if got := m.oemStrings(); len(got) != 1 || got[0] != "io.systemd.credential.binary:a.b=eAB5Cjp6" {
		t.Errorf("%q", got)
	}
	m = &Machine{mem: mem.New(), cfg: Config{Credentials: big, OEMStrings: strs}}
	if err := m.chooseCredentials(); err == nil || !strings.Contains(err.Error(), "--initrd=") {
		t.Error(err)
	}
	m.cfg.Boot.Initrds = []string{"x"}
	if err := m.chooseCredentials(); err != nil {
		t.Fatal(err)
	}
	var got string
	for _, c := range m.handOver {
		got += c.ID + "=" + string(c.Data[:min(4, len(c.Data))]) + " "
	}
	if got != "big=xxxx s=mine t=text b=\x00\x01 " || len(m.oemStrings()) != len(strs) {
		t.Errorf("%q %q", got, m.oemStrings())
	}
}

func TestWithParameter(t *testing.T) {
	for line, want := range map[string]string{"a b": "a b p=1", "": " p=1", "a -- b": "a p=1 -- b", "a --": "a p=1 -- "} {
		if got := withParameter(line, "p=1"); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}
