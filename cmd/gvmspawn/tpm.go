package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/arg"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/instance"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/swtpm"
	"github.com/gvmspawn/gvmspawn/vmm"
)

// Words of --tpm-state= besides a path.
const (
	tpmStateAuto = "auto"
	tpmStateOff  = "off"
)

// setTPMState takes off, auto, a boolean in their place, or a path.
func (s *settings) setTPMState(v string) error {
	switch b, err := arg.Bool(v); {
	case v == tpmStateAuto || err == nil && b:
		s.tpmState = tpmStateAuto
	case v == "" || v == tpmStateOff || err == nil:
		s.tpmState = tpmStateOff
	default:
		path, err := arg.ExplicitPath(v)
		if err != nil {
			return err
		}
		s.tpmState = path
	}
	return nil
}

// openTPM starts the machine's TPM. With --tpm=auto a machine can do without.
func (r *session) openTPM(ctx context.Context) error {
	if r.s.tpm == arg.No || r.s.deterministic {
		return nil
	}
	iface, err := tpmInterface()
	if err == nil {
		err = r.startTPM(ctx)
	}
	if err != nil {
		if r.s.tpm == arg.Yes {
			return err
		}
		r.log.Debug("The machine has no TPM", "error", err)
		return nil
	}
	r.cfg.TPM = &vmm.TPM{Interface: iface, Backend: r.tpm}
	return nil
}

// tpmInterface is the one that the environment asks for.
func tpmInterface() (vmm.TPMInterface, error) {
	switch v := os.Getenv("GVMSPAWN_TPM"); v {
	case "", "tis":
		return vmm.TPMTIS, nil
	case "crb":
		return vmm.TPMCRB, nil
	default:
		return 0, fmt.Errorf("$GVMSPAWN_TPM is %s, but can only be tis or crb", arg.Printable(v))
	}
}

func (r *session) startTPM(ctx context.Context) error {
	programs, err := swtpm.Find()
	if err != nil {
		return err
	}
	dir, transient, err := r.tpmStateDirectory()
	if err != nil {
		return err
	}
	r.tpm, err = swtpm.Start(ctx, swtpm.Config{Programs: programs, State: dir, Remove: transient, Log: r.log})
	return err
}

// tpmStateDirectory is where the TPM's state is kept, and whether it goes with
// the machine. What has no name of its own to put a directory beside has no
// lasting state by itself: a device node, the root directory.
func (r *session) tpmStateDirectory() (dir string, transient bool, err error) {
	state, image := r.s.tpmState, r.image.Path
	switch {
	case state != tpmStateAuto && state != tpmStateOff:
		return state, false, nil
	case state == tpmStateAuto && !r.s.ephemeral && image != "/" && !strings.HasPrefix(image, "/dev/"):
		return image + ".tpmstate", false, nil
	case r.instance != nil:
		return r.instance.Path(instance.TPMState), true, nil
	}
	tmp, err := os.MkdirTemp("", "gvmspawn-tpm-")
	if err != nil {
		err = fmt.Errorf("cannot make the TPM's state directory: %w", pathError(err))
	}
	return filepath.Clean(tmp), true, err
}

// closeTPM saves the TPM's state and ends it.
func (r *session) closeTPM() {
	if r.tpm == nil {
		return
	}
	if err := r.tpm.Close(); err != nil && !errors.Is(err, os.ErrNotExist) {
		r.log.Warn("Cannot remove the TPM's state", "error", pathError(err))
	}
}
