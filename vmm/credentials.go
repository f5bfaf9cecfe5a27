package vmm

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/gvmspawn/gvmspawn/boot/initrd"
	"github.com/gvmspawn/gvmspawn/boot/linux"
	"github.com/gvmspawn/gvmspawn/devices/fwcfg"
	"github.com/gvmspawn/gvmspawn/firmware/smbios"
)

// Credential is a named piece of data for systemd in the guest
// (systemd.system-credentials(7)).
type Credential struct {
	// ID is the name: a valid file name of at most 255 bytes.
	ID   string
	Data []byte
}

// Prefixes of SMBIOS type 11 strings that are credentials.
const (
	credentialText   = "io.systemd.credential:"
	credentialBinary = "io.systemd.credential.binary:"
)

// oemStrings are the strings of SMBIOS type 11: the caller's, and the
// credentials unless they go another way.
func (m *Machine) oemStrings() []string {
	out := append([]string(nil), m.cfg.OEMStrings...)
	if m.handOver != nil {
		return out
	}
	for i, c := range m.cfg.Credentials {
		if !slices.Contains(m.inFWCfg, i) {
			out = append(out, credentialBinary+c.ID+"="+base64.StdEncoding.EncodeToString(c.Data))
		}
	}
	return out
}

// credentialDirectory is where systemd finds credentials among the files of the
// firmware configuration device (systemd.system-credentials(7)).
const credentialDirectory = "opt/io.systemd.credentials/"

// shareCredentials moves the largest credentials to the firmware configuration
// device until the others fit into the SMBIOS table that Linux can read. Only those with
// short names can go there. It returns the table.
func (m *Machine) shareCredentials() ([]byte, error) {
	for {
		table, err := smbios.Table(m.smbios())
		if err != nil || len(table) <= smbios.LinuxTableMax {
			return table, err
		}
		largest := -1
		for i, c := range m.cfg.Credentials {
			movable := len(credentialDirectory)+len(c.ID) <= fwcfg.MaxName && !slices.Contains(m.inFWCfg, i)
			if movable && (largest < 0 || len(c.Data) > len(m.cfg.Credentials[largest].Data)) {
				largest = i
			}
		}
		if largest < 0 {
			return nil, fmt.Errorf("the SMBIOS strings need %d KiB, but Linux reads no more than %d KiB: give fewer or shorter ones, or credentials with names of at most %d bytes",
				len(table)>>10, smbios.LinuxTableMax>>10, fwcfg.MaxName-len(credentialDirectory))
		}
		m.inFWCfg = append(m.inFWCfg, largest)
	}
}

// chooseCredentials sees whether Linux can read the credentials from SMBIOS.
// More of them go by the initial RAM disk, from where systemd takes them as
// those of a container; it then looks nowhere else, so all of them go there.
func (m *Machine) chooseCredentials() error {
	table, err := smbios.Table(m.smbios())
	if err != nil || len(table) <= smbios.LinuxTableMax || len(m.cfg.Credentials) == 0 {
		return err
	}
	if len(m.cfg.Boot.Initrds) == 0 && m.cfg.Boot.Root == nil {
		return errors.New("credentials of more than 190 KiB are handed over by an initrd, and there is none: give one with --initrd=")
	}
	for _, c := range m.cfg.Credentials {
		m.handOver = append(m.handOver, initrd.Credential(c))
	}
	for _, s := range m.cfg.OEMStrings {
		if c, ok := parseCredential(s); ok && !m.hands(c.ID) {
			m.handOver = append(m.handOver, c)
		}
	}
	return nil
}

func (m *Machine) hands(id string) bool {
	for _, c := range m.handOver {
		if c.ID == id {
			return true
		}
	}
	return false
}

// parseCredential reads a type 11 string that is a credential.
func parseCredential(s string) (c initrd.Credential, ok bool) {
	rest, text := strings.CutPrefix(s, credentialText)
	if !text {
		if rest, ok = strings.CutPrefix(s, credentialBinary); !ok {
			return c, false
		}
	}
	id, value, found := strings.Cut(rest, "=")
	if !found || id == "" || id == "." || id == ".." || strings.Contains(id, "/") {
		return c, false
	}
	if text {
		return initrd.Credential{ID: id, Data: []byte(value)}, true
	}
	data, err := base64.StdEncoding.DecodeString(value)
	return initrd.Credential{ID: id, Data: data}, err == nil
}

// handoverInitrd appends what hands the credentials over to the caller's
// initrds. It returns the command line that this needs.
func (m *Machine) handoverInitrd(initrds []linux.Initrd) ([]linux.Initrd, string, error) {
	line := m.cfg.Boot.CommandLine
	if m.handOver == nil || len(initrds) == 0 {
		return initrds, line, nil
	}
	img, err := initrd.Handover(m.handOver, line)
	if err != nil {
		return nil, "", err
	}
	return append(initrds, linux.Initrd{Name: "credentials of gvmspawn", Size: img.Size(), Data: img}), withParameter(line, "rdinit="+initrd.HandoverInit), nil
}

// withParameter adds a kernel parameter, before the words that are init's.
func withParameter(line, p string) string {
	if before, after, found := strings.Cut(line+" ", " -- "); found {
		return before + " " + p + " -- " + strings.TrimSuffix(after, " ")
	}
	return line + " " + p
}
