// Package sshkey makes the key pair with which a machine's owner logs in to
// it, without the help of ssh-keygen. The key lives as long as the machine.
package sshkey

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"
)

// rsaBits is the size of RSA keys, that of ssh-keygen.
const rsaBits = 3072

// Types are the key types of --ssh-key-type=.
var Types = []string{"ed25519", "rsa", "ecdsa"}

// Pair is a key pair.
type Pair struct {
	Type string
	// AuthorizedKey is the public key as a line of authorized_keys(5).
	AuthorizedKey []byte
	// Private is the private key in OpenSSH's format.
	Private []byte
	// Signer signs with it.
	Signer ssh.Signer
}

// Generate makes a key pair of one of Types.
func Generate(typ, comment string) (*Pair, error) {
	key, err := generate(typ)
	if err != nil {
		return nil, err
	}
	signer, err := ssh.NewSignerFromSigner(key)
	if err != nil {
		return nil, fmt.Errorf("cannot use the new SSH key: %w", err)
	}
	block, err := ssh.MarshalPrivateKey(key, comment)
	if err != nil {
		return nil, fmt.Errorf("cannot encode the new SSH key: %w", err)
	}
	line := strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(signer.PublicKey())), "\n")
	return &Pair{typ, []byte(line + " " + comment + "\n"), pem.EncodeToMemory(block), signer}, nil
}

func generate(typ string) (crypto.Signer, error) {
	switch typ {
	case "ed25519":
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	case "rsa":
		return rsa.GenerateKey(rand.Reader, rsaBits)
	case "ecdsa":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	return nil, fmt.Errorf("unknown SSH key type %q, expected one of %s", typ, strings.Join(Types, ", "))
}

// Write writes the private key to dir/NAME and the public one to dir/NAME.pub
// and returns the first path. Files of that name are replaced.
func (p *Pair) Write(dir, name string) (string, error) {
	path := filepath.Join(dir, name)
	for _, f := range []struct {
		path string
		data []byte
		mode os.FileMode
	}{{path, p.Private, 0o600}, {path + ".pub", p.AuthorizedKey, 0o644}} {
		if err := os.Remove(f.path); err != nil && !os.IsNotExist(err) {
			return "", err
		}
		w, err := os.OpenFile(f.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, f.mode)
		if err != nil {
			return "", err
		}
		_, err = w.Write(f.data)
		if cerr := w.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return "", fmt.Errorf("cannot write %s: %w", f.path, err)
		}
	}
	return path, nil
}
