package vmm

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/gvmspawn/gvmspawn/devices/fwcfg"
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

// TestShareCredentials: with firmware the largest go to its configuration device, and
// what cannot go there is one sentence.
func TestShareCredentials(t *testing.T) {
	data := func(n int) []byte { return bytes.Repeat([]byte("x"), n<<10) }
	long := strings.Repeat("n", fwcfg.MaxName-len(credentialDirectory)+1)
	m := &Machine{mem: mem.New(), cfg: Config{Credentials: []Credential{{"a", data(1)}, {"b", data(150)}, {"c", data(100)}, {long, data(90)}}}}
	table, err := m.shareCredentials()
	if err != nil || !slices.Equal(m.inFWCfg, []int{1}) || len(m.oemStrings()) != 3 || bytes.Count(table, []byte("io.systemd.credential")) != 3 {
		t.Errorf("%v, moved %v of %d bytes", err, m.inFWCfg, len(table))
	}
	m = &Machine{mem: mem.New(), cfg: Config{Credentials: []Credential{{"a", data(1)}, {long, data(200)}}}}
	if _, err := m.shareCredentials(); err == nil || !strings.Contains(err.Error(), "names of at most 28 bytes") || strings.Contains(err.Error(), "\n") {
		t.Error(err)
	}
}

func TestWithParameter(t *testing.T) {
	for line, want := range map[string]string{"a b": "a b p=1", "": " p=1", "a -- b": "a p=1 -- b", "a --": "a p=1 -- "} {
		if got := withParameter(line, "p=1"); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}
