package sshkey

import (
	"bytes"
	"os"
	"testing"

	"golang.org/x/crypto/ssh"
)

func TestGenerate(t *testing.T) {
	for _, typ := range []string{"ed25519", "ecdsa", "rsa"} {
		if typ == "rsa" && testing.Short() {
			continue
		}
		p, err := Generate(typ, "gvmspawn machine")
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		for range 2 { // the second replaces the first
			if _, err = p.Write(dir, "key"); err != nil {
				t.Fatal(err)
			}
		}
		private, err := os.ReadFile(dir + "/key")
		if err != nil {
			t.Fatal(err)
		}
		signer, err := ssh.ParsePrivateKey(private)
		if err != nil {
			t.Fatal(err)
		}
		public, comment, _, _, err := ssh.ParseAuthorizedKey(p.AuthorizedKey)
		if err != nil || comment != "gvmspawn machine" || !bytes.Equal(public.Marshal(), signer.PublicKey().Marshal()) {
			t.Errorf("%s: %v %q", typ, err, comment)
		}
		if fi, err := os.Stat(dir + "/key"); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%v %v", fi.Mode(), err)
		}
	}
	if _, err := Generate("dsa", ""); err == nil {
		t.Error("dsa accepted")
	}
}
