package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"
)

// tpmSecret is what is sealed.
var tpmSecret = []byte("a secret of the guest")

// sealPCR is the register that the secret is sealed to: the debug register,
// which is zero after a reset.
const sealPCR = 16

// tpmDevice is the kernel's TPM with a resource manager.
const tpmDevice = "/dev/tpmrm0"

// onTPM calls f with the kernel's TPM.
func onTPM(f func(transport.TPM) error) error {
	t, err := linuxtpm.Open(tpmDevice)
	if err != nil {
		return err
	}
	defer t.Close()
	return f(t)
}

// srk makes the storage root key, which is the same after each reset.
func srk(t transport.TPM) (*tpm2.CreatePrimaryResponse, error) {
	return tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(t)
}

func pcrs() tpm2.TPMLPCRSelection {
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(sealPCR)}}}
}

// sealed is the policy of the secret, for a session that uses or computes it.
func sealed(t transport.TPM, h tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
	_, err := tpm2.PolicyPCR{PolicySession: h, Pcrs: pcrs()}.Execute(t)
	return err
}

// policyDigest is what a trial session makes of the policy now.
func policyDigest(t transport.TPM) (tpm2.TPM2BDigest, error) {
	s, done, err := tpm2.PolicySession(t, tpm2.TPMAlgSHA256, 16, tpm2.Trial())
	if err != nil {
		return tpm2.TPM2BDigest{}, err
	}
	defer done() //nolint:errcheck // the resource manager forgets it, too
	if err := sealed(t, s.Handle(), s.NonceTPM()); err != nil {
		return tpm2.TPM2BDigest{}, err
	}
	r, err := tpm2.PolicyGetDigest{PolicySession: s.Handle()}.Execute(t)
	if err != nil {
		return tpm2.TPM2BDigest{}, err
	}
	return r.PolicyDigest, nil
}

// tpmSeal seals the secret to the state of a register and keeps it in files.
func tpmSeal(file string) error {
	return onTPM(func(t transport.TPM) error {
		parent, err := srk(t)
		if err != nil {
			return err
		}
		digest, err := policyDigest(t)
		if err != nil {
			return err
		}
		key, err := tpm2.Create{
			ParentHandle: tpm2.AuthHandle{Handle: parent.ObjectHandle, Name: parent.Name, Auth: tpm2.PasswordAuth(nil)},
			InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
				Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: tpmSecret})}},
			InPublic: tpm2.New2B(tpm2.TPMTPublic{
				Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256, AuthPolicy: digest,
				ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true},
			}),
		}.Execute(t)
		if err != nil {
			return err
		}
		return errors.Join(os.WriteFile(file+".public", tpm2.Marshal(key.OutPublic), 0o600),
			os.WriteFile(file+".private", tpm2.Marshal(key.OutPrivate), 0o600))
	})
}

// tpmUnseal gets the secret back; the TPM refuses once the register changes.
func tpmUnseal(file string) error {
	return onTPM(func(t transport.TPM) error {
		if err := unseal(t, file); err != nil {
			return err
		}
		_, err := tpm2.PCRExtend{
			PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(sealPCR), Auth: tpm2.PasswordAuth(nil)},
			Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: bytes.Repeat([]byte{1}, 32)}}},
		}.Execute(t)
		if err != nil {
			return err
		}
		if err := unseal(t, file); !errors.Is(err, tpm2.TPMRCPolicyFail) {
			return fmt.Errorf("unsealed although the register differs: %v", err)
		}
		return nil
	})
}

func unseal(t transport.TPM, file string) error {
	public, err := os.ReadFile(file + ".public")
	if err != nil {
		return err
	}
	private, err := os.ReadFile(file + ".private")
	if err != nil {
		return err
	}
	outPublic, err := tpm2.Unmarshal[tpm2.TPM2BPublic](public)
	if err != nil {
		return err
	}
	outPrivate, err := tpm2.Unmarshal[tpm2.TPM2BPrivate](private)
	if err != nil {
		return err
	}
	parent, err := srk(t)
	if err != nil {
		return err
	}
	defer tpm2.FlushContext{FlushHandle: parent.ObjectHandle}.Execute(t) //nolint:errcheck // the resource manager forgets it, too
	key, err := tpm2.Load{
		ParentHandle: tpm2.AuthHandle{Handle: parent.ObjectHandle, Name: parent.Name, Auth: tpm2.PasswordAuth(nil)},
		InPublic:     *outPublic, InPrivate: *outPrivate,
	}.Execute(t)
	if err != nil {
		return err
	}
	defer tpm2.FlushContext{FlushHandle: key.ObjectHandle}.Execute(t) //nolint:errcheck // likewise
	r, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{
		Handle: key.ObjectHandle, Name: key.Name, Auth: tpm2.Policy(tpm2.TPMAlgSHA256, 16, sealed),
	}}.Execute(t)
	if err == nil && !bytes.Equal(r.OutData.Buffer, tpmSecret) {
		err = fmt.Errorf("unsealed %q", r.OutData.Buffer)
	}
	return err
}
