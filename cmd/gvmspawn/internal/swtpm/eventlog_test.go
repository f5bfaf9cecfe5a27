package swtpm

import (
	"crypto"
	"crypto/sha256"
	"encoding/binary"
	"path/filepath"
	"testing"

	"github.com/google/go-eventlog/proto/state"
	"github.com/google/go-eventlog/register"
	"github.com/google/go-eventlog/tcg"
	"github.com/google/go-tpm-tools/client"
	legacy "github.com/google/go-tpm/legacy/tpm2"
	"github.com/google/go-tpm/tpmutil"
)

// eventLog is a log in the crypto agile format with SHA-256 (TCG PC Client
// Platform Firmware Profile 1.06 §10).
type eventLog struct{ bytes []byte }

func newEventLog() *eventLog {
	le := binary.LittleEndian
	spec := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2)
	spec = le.AppendUint32(spec, 1)
	spec = le.AppendUint16(spec, uint16(legacy.AlgSHA256))
	spec = append(le.AppendUint16(spec, sha256.Size), 0)
	b := le.AppendUint32(make([]byte, 4), uint32(tcg.NoAction))
	b = le.AppendUint32(append(b, make([]byte, 20)...), uint32(len(spec)))
	return &eventLog{append(b, spec...)}
}

// measure logs an event and extends its register, as firmware does.
func (l *eventLog) measure(t *testing.T, m machine, pcr int, typ tcg.EventType, data []byte) {
	t.Helper()
	le, digest := binary.LittleEndian, sha256.Sum256(data)
	b := le.AppendUint32(l.bytes, uint32(pcr))
	b = le.AppendUint32(b, uint32(typ))
	b = le.AppendUint32(b, 1)
	b = append(le.AppendUint16(b, uint16(legacy.AlgSHA256)), digest[:]...)
	l.bytes = append(le.AppendUint32(b, uint32(len(data))), data...)
	if err := legacy.PCRExtend(m, tpmutil.Handle(pcr), legacy.AlgSHA256, digest[:], ""); err != nil {
		t.Fatal(err)
	}
}

// pcrs reads the whole bank.
func pcrs(t *testing.T, m machine) register.PCRBank {
	t.Helper()
	read, err := client.ReadPCRs(m, client.FullPcrSel(legacy.AlgSHA256))
	if err != nil {
		t.Fatal(err)
	}
	bank := register.PCRBank{TCGHashAlgo: state.HashAlgo_SHA256}
	for i, d := range read.GetPcrs() {
		bank.PCRs = append(bank.PCRs, register.PCR{Index: int(i), Digest: d, DigestAlg: crypto.SHA256})
	}
	return bank
}

// TestEventLog: what is measured through a chip's registers gives the PCRs that
// the log replays to, and another log does not.
func TestEventLog(t *testing.T) {
	s := start(t, filepath.Join(t.TempDir(), "state"))
	for iface := range interfaces {
		m := boot(t, s, iface)
		l := newEventLog()
		l.measure(t, m, 0, tcg.SCRTMVersion, []byte("firmware"))
		l.measure(t, m, 4, tcg.Separator, make([]byte, 4))
		l.measure(t, m, 4, tcg.EFIAction, []byte("the kernel"))
		l.measure(t, m, 9, tcg.Ipl, []byte("its command line"))
		l.measure(t, m, 4, tcg.EFIAction, []byte("Exit Boot Services Invocation"))
		bank := pcrs(t, m)
		events, err := tcg.ParseAndReplay(l.bytes, bank.MRs(), tcg.ParseOpts{})
		if err != nil || len(events) != 5 {
			t.Errorf("%s: %d events, %v", iface, len(events), err)
		}
		l.measure(t, m, 9, tcg.Ipl, []byte("more"))
		if _, err := tcg.ParseAndReplay(l.bytes, bank.MRs(), tcg.ParseOpts{}); err == nil {
			t.Errorf("%s: a longer log replays to the same registers", iface)
		}
		m.chip.Close()
	}
}
