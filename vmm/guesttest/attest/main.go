// Attest proves to others what its machine booted, in whole-machine tests:
//
//	attest DIR NONCE
//
// looks for the PCR banks and the endorsement key of the TPM, and writes an
// attestation (quotes of all PCRs by a new key, with the event log) to
// DIR/attestation. It prints "CHECK attest ok" or "CHECK attest FAIL: why".
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/go-tpm-tools/client"
	"github.com/google/go-tpm/legacy/tpm2"
	"google.golang.org/protobuf/proto"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Println("attest: expected DIR NONCE")
		os.Exit(2)
	}
	if err := attest(os.Args[1], os.Args[2]); err != nil {
		fmt.Printf("CHECK attest FAIL: %v\n", err)
		return
	}
	fmt.Println("CHECK attest ok")
}

func attest(dir, nonce string) error {
	t, err := tpm2.OpenTPM("/dev/tpmrm0")
	if err != nil {
		return err
	}
	defer t.Close()
	banks, err := client.AllocatedPCRs(t)
	if err != nil {
		return err
	}
	if len(banks) != 1 || banks[0].Hash != tpm2.AlgSHA256 || len(banks[0].PCRs) != client.NumPCRs {
		return fmt.Errorf("the PCR banks are %v", banks)
	}
	ek, err := client.EndorsementKeyRSA(t)
	if err != nil {
		return err
	}
	defer ek.Close()
	if ek.Cert() == nil {
		return errors.New("the endorsement key has no certificate")
	}
	ak, err := client.AttestationKeyECC(t)
	if err != nil {
		return err
	}
	defer ak.Close()
	log, err := client.GetEventLog(t)
	if err != nil {
		return err
	}
	a, err := ak.Attest(client.AttestOpts{Nonce: []byte(nonce), TCGEventLog: log, SkipTeeAttestation: true})
	if err != nil {
		return err
	}
	data, err := proto.Marshal(a)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "attestation"), data, 0o644)
}
