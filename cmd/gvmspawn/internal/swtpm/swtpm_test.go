package swtpm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-tpm-tools/client"
	pb "github.com/google/go-tpm-tools/proto/tpm"
	verify "github.com/google/go-tpm-tools/quote"
	legacy "github.com/google/go-tpm/legacy/tpm2"
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/devices/tpm"
	"github.com/gvmspawn/gvmspawn/devices/tpm/tpmtest"
	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// programs finds swtpm, or skips.
func programs(t *testing.T) Programs {
	t.Helper()
	p, err := Find()
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return p
}

// manufactured is a new TPM's state, which takes seconds to make.
var manufactured = sync.OnceValues(func() (fs.FS, error) {
	dir, err := os.MkdirTemp("", "swtpm-test-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	p, err := Find()
	if err == nil {
		err = p.manufacture(context.Background(), dir)
	}
	if err != nil {
		return nil, err
	}
	files := fstest.MapFS{}
	for _, name := range []string{marker, "tpm2-00.permall"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		files[name] = &fstest.MapFile{Data: data, Mode: 0o600}
	}
	return files, nil
})

// start starts swtpm on a directory, with a new TPM if that is not there.
func start(t *testing.T, dir string) *TPM {
	t.Helper()
	if _, err := os.Stat(dir); err != nil {
		programs(t)
		files, err := manufactured()
		if err == nil {
			err = os.CopyFS(dir, files)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	s, err := Start(context.Background(), Config{Programs: programs(t), State: dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// machine is one boot of a machine with a chip in front of swtpm.
type machine struct {
	chip interface {
		bus.Device
		Close() error
	}
	*tpmtest.Driver
}

// interfaces are the chips.
var interfaces = map[string]func(*TPM) (machine, error){
	"TIS": func(s *TPM) (m machine, err error) {
		if m.chip, err = tpm.NewTIS(s); err == nil {
			m.Driver, err = tpmtest.NewTIS(m.chip, 0)
		}
		return m, err
	},
	"CRB": func(s *TPM) (m machine, err error) {
		if m.chip, err = tpm.NewCRB(s, 0xfed40000); err == nil {
			m.Driver, err = tpmtest.NewCRB(m.chip, 0)
		}
		return m, err
	},
}

// boot resets the TPM, as a new machine does, and starts it, as firmware does.
func boot(t *testing.T, s *TPM, iface string) machine {
	t.Helper()
	m, err := interfaces[iface](s)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.Startup{StartupType: tpm2.TPMSUClear}).Execute(transport.FromReadWriter(m)); err != nil {
		t.Fatal(err)
	}
	return m
}

// read gives a PCR of the SHA-256 bank.
func read(t *testing.T, m machine, pcr int) []byte {
	t.Helper()
	p, err := client.ReadPCRs(m, legacy.PCRSelection{Hash: legacy.AlgSHA256, PCRs: []int{pcr}})
	if err != nil {
		t.Fatal(err)
	}
	return p.GetPcrs()[uint32(pcr)]
}

// TestLibraries drives each chip by the libraries that attest and seal with
// real TPMs: banks, endorsement keys with certificates, a quote that verifies,
// sealing to PCRs.
func TestLibraries(t *testing.T) {
	s := start(t, filepath.Join(t.TempDir(), "state"))
	for iface := range interfaces {
		t.Run(iface, func(t *testing.T) {
			m := boot(t, s, iface)
			defer m.chip.Close()
			banks(t, m)
			endorsement(t, m)
			quote(t, m)
			seal(t, m)
		})
	}
}

// banks: the state has the SHA-256 bank alone, and PCRs extend.
func banks(t *testing.T, m machine) {
	sel, err := client.AllocatedPCRs(m)
	if err != nil {
		t.Fatal(err)
	}
	sel = slices.DeleteFunc(sel, func(p legacy.PCRSelection) bool { return len(p.PCRs) == 0 })
	if len(sel) != 1 || sel[0].Hash != legacy.AlgSHA256 || len(sel[0].PCRs) != 24 {
		t.Errorf("banks %v", sel)
	}
	digest := sha256.Sum256([]byte("event"))
	want := sha256.Sum256(append(make([]byte, 32), digest[:]...))
	if err := legacy.PCRExtend(m, 4, legacy.AlgSHA256, digest[:], ""); err != nil {
		t.Fatal(err)
	}
	if got := read(t, m, 4); !bytes.Equal(got, want[:]) {
		t.Errorf("PCR 4 is %x, want %x", got, want)
	}
}

// endorsement: swtpm_setup made keys that have certificates of the state's own
// authority.
func endorsement(t *testing.T, m machine) {
	ek, err := client.EndorsementKeyRSA(m)
	if err != nil {
		t.Fatal(err)
	}
	defer ek.Close()
	if ek.Cert() == nil || ek.Cert().PublicKey == nil {
		t.Error("the RSA endorsement key has no certificate")
	}
	ecc, err := client.EndorsementKeyECC(m)
	if err != nil {
		t.Fatal(err)
	}
	defer ecc.Close()
}

// quote: a quote over PCRs by an attestation key verifies, and not with
// another nonce.
func quote(t *testing.T, m machine) {
	ak, err := client.AttestationKeyECC(m)
	if err != nil {
		t.Fatal(err)
	}
	defer ak.Close()
	q, err := ak.Quote(legacy.PCRSelection{Hash: legacy.AlgSHA256, PCRs: []int{0, 4, 7}}, []byte("nonce"))
	if err != nil {
		t.Fatal(err)
	}
	if err := verify.Verify(q, ak.PublicKey(), []byte("nonce")); err != nil {
		t.Error(err)
	}
	if err := verify.Verify(q, ak.PublicKey(), []byte("other")); err == nil {
		t.Error("a quote verifies with any nonce")
	}
}

// seal: what is sealed to a PCR cannot be unsealed once it changed.
func seal(t *testing.T, m machine) {
	srk, err := client.StorageRootKeyECC(m)
	if err != nil {
		t.Fatal(err)
	}
	defer srk.Close()
	sel := legacy.PCRSelection{Hash: legacy.AlgSHA256, PCRs: []int{8}}
	blob, err := srk.Seal([]byte("secret"), client.SealOpts{Current: sel})
	if err != nil {
		t.Fatal(err)
	}
	unseal := func(b *pb.SealedBytes) ([]byte, error) { return srk.Unseal(b, client.UnsealOpts{CertifyCurrent: sel}) }
	if got, err := unseal(blob); err != nil || string(got) != "secret" {
		t.Errorf("%q, %v", got, err)
	}
	if err := legacy.PCRExtend(m, 8, legacy.AlgSHA256, make([]byte, 32), ""); err != nil {
		t.Fatal(err)
	}
	if got, err := unseal(blob); err == nil {
		t.Errorf("unsealed %q after the PCR changed", got)
	}
}

// TestResetAndState: a reset clears PCRs and keeps what is persistent, as does
// another swtpm on the same state; two at a time are refused.
func TestResetAndState(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a state, with = signs")
	s := start(t, dir)
	m := boot(t, s, "TIS")
	const index = 0x1500016
	if err := legacy.NVDefineSpace(m, legacy.HandleOwner, index, "", "", nil, legacy.AttrOwnerWrite|legacy.AttrOwnerRead, 8); err != nil {
		t.Fatal(err)
	}
	if err := legacy.NVWrite(m, legacy.HandleOwner, index, "", []byte("lasting!"), 0); err != nil {
		t.Fatal(err)
	}
	if err := legacy.PCRExtend(m, 0, legacy.AlgSHA256, make([]byte, 32), ""); err != nil {
		t.Fatal(err)
	}
	m.chip.Close()
	check := func(m machine) {
		t.Helper()
		defer m.chip.Close()
		if got := read(t, m, 0); !bytes.Equal(got, make([]byte, 32)) {
			t.Errorf("PCR 0 after a reset is %x", got)
		}
		if got, err := legacy.NVReadEx(m, index, legacy.HandleOwner, "", 0); err != nil || string(got) != "lasting!" {
			t.Errorf("NV index: %q, %v", got, err)
		}
	}
	check(boot(t, s, "CRB"))
	if _, err := Start(context.Background(), s.cfg); err == nil || !strings.Contains(err.Error(), "is the machine running already?") {
		t.Errorf("a second TPM on the state: %v", err)
	}
	if err := s.Close(); err != nil || !s.r.over() {
		t.Error(err)
	}
	check(boot(t, start(t, dir), "TIS"))
}

// TestDeath: commands to a swtpm that was killed fail at once with a TPM's own
// error, and the next reset starts another.
func TestDeath(t *testing.T) {
	s := start(t, filepath.Join(t.TempDir(), "state"))
	for iface := range interfaces {
		m := boot(t, s, iface)
		s.r.cmd.Process.Signal(unix.SIGKILL)
		<-s.r.done
		for range 3 {
			now := time.Now()
			_, err := legacy.GetRandom(m, 8)
			if err == nil || time.Since(now) > 5*time.Second {
				t.Errorf("%s: %v after %v", iface, err, time.Since(now))
			}
			if want := "error code 0x1"; err != nil && !bytes.Contains([]byte(fmt.Sprint(err)), []byte(want)) {
				t.Errorf("%s: %v is not TPM_RC_FAILURE", iface, err)
			}
		}
		m.chip.Close()
	}
	m := boot(t, s, "TIS")
	defer m.chip.Close()
	if _, err := legacy.GetRandom(m, 8); err != nil {
		t.Error(err)
	}
}

// TestHang: a swtpm that stands still blocks neither register accesses nor, for
// long, the next boot, which gets another one.
func TestHang(t *testing.T) {
	old := answerTime
	defer func() { answerTime = old }()
	answerTime = time.Second
	s := start(t, filepath.Join(t.TempDir(), "state"))
	m := boot(t, s, "TIS")
	first := s.r
	first.cmd.Process.Signal(unix.SIGSTOP)                       //nolint:errcheck // it runs
	go m.Send([]byte{0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 8}) //nolint:errcheck // it fails when the process ends
	time.Sleep(50 * time.Millisecond)
	for range 1000 {
		m.chip.Read(0x18, 4)
	}
	m = boot(t, s, "CRB")
	defer m.chip.Close()
	if s.r == first || !first.over() {
		t.Error("the TPM was reset by a process that stands still")
	}
	if _, err := legacy.GetRandom(m, 8); err != nil {
		t.Error(err)
	}
}
