package hostuser

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func host(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{
		"passwd":                    "root:x:0:0:root:/root:/bin/bash\nlennart:x:1000:100:Lennart P.,room 1:" + dir + "/home:/bin/zsh\nlocked:x:1001:1001::/none:/bin/sh\nbroken:x:y:1:::\n",
		"shadow":                    "lennart:$6$salt$hash:1:::::\nlocked:!$6$x:1:::::\n",
		"home/.ssh/authorized_keys": "# mine\nssh-ed25519 AAAA me\n\nssh-rsa BBBB\n",
	} {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	oldPasswd, oldShadow := passwdFile, shadowFile
	passwdFile, shadowFile = filepath.Join(dir, "passwd"), filepath.Join(dir, "shadow")
	t.Cleanup(func() { passwdFile, shadowFile = oldPasswd, oldShadow })
	return dir
}

func TestLookup(t *testing.T) {
	dir := host(t)
	u, err := Lookup("lennart")
	if err != nil {
		t.Fatal(err)
	}
	user, group, err := u.Records(Guest{ID: 60514, Home: "/run/vmhost/home/lennart", Shell: "/bin/sh", Groups: []string{"wheel"}})
	if want := `{"userName":"lennart","uid":60514,"gid":60514,"realName":"Lennart P.","homeDirectory":"/run/vmhost/home/lennart","shell":"/bin/sh","memberOf":["wheel"],"disposition":"container","service":"io.systemd.VMSpawn",` +
		`"privileged":{"hashedPassword":["$6$salt$hash"],"sshAuthorizedKeys":["ssh-ed25519 AAAA me","ssh-rsa BBBB"]}}`; err != nil || string(user) != want {
		t.Errorf("%s %v", user, err)
	}
	if want := `{"groupName":"lennart","gid":60514,"description":"Lennart P.","disposition":"container","service":"io.systemd.VMSpawn"}`; string(group) != want {
		t.Errorf("%s", group)
	}
	if u.UID != 1000 || u.GID != 100 || u.Home != dir+"/home" || u.Shell != "/bin/zsh" {
		t.Errorf("%+v", u)
	}
	if u, err := Lookup("locked"); err != nil || u.HashedPassword != "" || u.AuthorizedKeys != nil {
		t.Errorf("%+v %v", u, err)
	}
	for name, want := range map[string]string{"root": "root of the host", "broken": "damaged", "nobody-of-that-name": "there is no user", "lennar": "there is no user", "": "there is no user"} {
		if _, err := Lookup(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// TestKeysElsewhere: a link in the home of a user does not make us read what
// the user may not.
func TestKeysElsewhere(t *testing.T) {
	dir := host(t)
	p := filepath.Join(dir, "home/.ssh/authorized_keys")
	if err := os.Remove(p); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(shadowFile, p); err != nil {
		t.Fatal(err)
	}
	if u, err := Lookup("lennart"); err != nil || u.AuthorizedKeys != nil {
		t.Errorf("%+v %v", u, err)
	}
}
