package swtpm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// setupTime is how long swtpm_setup may take: it makes two or three keys.
const setupTime = 2 * time.Minute

// marker is the file that says that swtpm_setup has finished in a state
// directory; systemd-vmspawn calls it so, too.
const marker = ".manufactured"

// sbin are the directories besides those of $PATH.
var sbin = []string{"/usr/local/bin", "/usr/local/sbin", "/usr/bin", "/usr/sbin", "/bin", "/sbin"}

// Programs are the paths of swtpm's programs.
type Programs struct{ swtpm, setup, localca string }

// Find looks for the programs.
func Find() (Programs, error) {
	var p Programs
	for name, to := range map[string]*string{"swtpm": &p.swtpm, "swtpm_setup": &p.setup, "swtpm_localca": &p.localca} {
		path, ok := find(name)
		if !ok {
			return Programs{}, fmt.Errorf("a TPM needs the program %s: install swtpm and its tools, or use --tpm=no", name)
		}
		*to = path
	}
	return p, nil
}

func find(name string) (string, bool) {
	if path, err := exec.LookPath(name); err == nil {
		path, err = filepath.Abs(path)
		return path, err == nil
	}
	for _, dir := range sbin {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, true
		}
	}
	return "", false
}

// manufacture makes the state of a new TPM, with endorsement keys and their
// certificates, unless the directory has one.
func (p *Programs) manufacture(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cannot make the TPM's state directory: %w", err)
	}
	done := filepath.Join(dir, marker)
	if _, err := os.Stat(done); err == nil {
		return nil
	}
	if strings.ContainsAny(dir, "\n\r") {
		return fmt.Errorf("the TPM's state cannot be in %q: the path has a line break", dir)
	}
	if err := p.writeConfig(dir); err != nil {
		return fmt.Errorf("cannot write to the TPM's state directory: %w", err)
	}
	// The state is named relative to the directory, because swtpm splits
	// paths at commas.
	args := []string{"--tpm-state", ".", "--tpm2", "--pcr-banks", "sha256", "--ecc", "--createek",
		"--create-ek-cert", "--create-platform-cert", "--not-overwrite", "--config", setupConf}
	if profile := p.profile(ctx); profile != "" {
		args = append(args, "--profile-name="+profile)
	}
	out, err := run(ctx, dir, p.setup, args...)
	if err != nil {
		return fmt.Errorf("swtpm_setup cannot make a TPM in %s: %s", dir, describe(err, out))
	}
	if err := os.WriteFile(done, nil, 0o600); err != nil {
		return fmt.Errorf("cannot write to the TPM's state directory: %w", err)
	}
	return nil
}

// Names in a state directory, as systemd-vmspawn has them.
const (
	setupConf   = "swtpm_setup.conf"
	caConf      = "swtpm-localca.conf"
	caOptions   = "swtpm-localca.options"
	caKey       = "signing-private-key.pem"
	caIssuer    = "issuer-certificate.pem"
	caSerial    = "certserial"
	privateMode = 0o600
)

// writeConfig makes swtpm_localca keep its certificate authority in the state
// directory: the system's may not be ours to write.
func (p *Programs) writeConfig(dir string) error {
	in := func(name string) string { return filepath.Join(dir, name) }
	for name, lines := range map[string][]string{
		caConf:    {"statedir = " + dir, "signingkey = " + in(caKey), "issuercert = " + in(caIssuer), "certserial = " + in(caSerial)},
		caOptions: {"--platform-manufacturer gvmspawn", "--platform-version 1.0", "--platform-model swtpm"},
		setupConf: {"create_certs_tool = " + p.localca, "create_certs_tool_config = " + in(caConf), "create_certs_tool_options = " + in(caOptions)},
	} {
		if err := os.WriteFile(in(name), []byte(strings.Join(lines, "\n")+"\n"), privateMode); err != nil {
			return err
		}
	}
	return nil
}

// profile is the newest of the built-in profiles default-v1, default-v2, …, or
// empty for a swtpm_setup that knows none (before 0.10). Its exit status says
// nothing.
func (p *Programs) profile(ctx context.Context) string {
	out, _ := run(ctx, "/", p.setup, "--tpm2", "--print-profiles")
	var known struct {
		Builtin []struct{ Name string } `json:"builtin"`
	}
	if json.Unmarshal(out, &known) != nil {
		return ""
	}
	best, version := "", -1
	for _, b := range known.Builtin {
		s, ok := strings.CutPrefix(b.Name, "default-v")
		if n, err := strconv.Atoi(s); ok && err == nil && n > version {
			best, version = b.Name, n
		}
	}
	return best
}

// run runs a program to its end and returns what it printed.
func run(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, setupTime)
	defer cancel()
	var out bytes.Buffer
	c := exec.CommandContext(ctx, name, args...)
	c.Dir, c.Stdout, c.Stderr, c.SysProcAttr = dir, &out, &out, child()
	c.WaitDelay = time.Second // should it leave somebody behind with our pipe
	p, err := startChild(c)
	if err == nil {
		err = p.wait()
	}
	if ctx.Err() != nil {
		err = errors.New("it takes too long")
	}
	return out.Bytes(), err
}

// describe is what a program said last, or how it ended.
func describe(err error, out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	last := strings.TrimSpace(lines[len(lines)-1])
	if last == "" || strings.HasPrefix(last, "Ending vTPM manufacturing") && len(lines) < 2 {
		return err.Error()
	}
	if strings.HasPrefix(last, "Ending vTPM manufacturing") {
		last = strings.TrimSpace(lines[len(lines)-2])
	}
	return last
}
