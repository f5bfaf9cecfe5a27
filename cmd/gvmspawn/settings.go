package main

import (
	"errors"
	"fmt"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/arg"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/credential"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/firmware"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/journal"
)

// settings are the command line's wishes, checked one by one as they are
// parsed and together by check.
type settings struct {
	// What to do instead of running a machine.
	help, version, noPager bool
	list                   string // "firmware" or "firmware-features"

	quiet bool

	// Image.
	directory, image, machine string
	ephemeral                 bool
	imageFormat               string
	diskType                  string
	diskCache, diskBacking    string
	discard                   bool
	growImage                 uint64
	extraDrives               []arg.Drive

	// Host.
	cpus                    arg.Topology
	ram                     arg.Memory
	kvm, vsock              arg.Tristate
	tpm                     arg.Tristate
	tpmState                string // tpmStateAuto, tpmStateOff or a path
	vsockCID                uint32
	networkTAP, networkUser bool
	ports                   []arg.Forward
	linux                   string
	initrds                 []string
	smbios11                []string
	uuid                    arg.UUID
	deterministic, kaslr    bool
	virtio, ring            string // "pci" or "mmio"; "split" or "packed"
	seed                    uint64
	dax                     uint64
	gdb                     string // "", a port or unix:PATH

	// Firmware.
	firmware      string // a word or a path
	describe      bool
	features      *firmware.Features
	template      string // of EFI variables, "" for the firmware's
	variables     firmware.Keep
	variablesPath string // of KeepFile

	// Properties and system integration.
	register         arg.Tristate
	keepUnit         bool
	slice            string
	properties       []string
	system, user     bool
	noAskPassword    bool
	notifyReady      bool
	stopTimeout      uint64 // seconds
	privateUsers     arg.UIDRange
	privateUsersOn   bool
	binds            []arg.Bind
	bindUsers        []string
	bindUserShell    string // "", hostShell or a path
	bindUserShellSet bool
	bindUserGroups   []string

	// Journal.
	forwardJournal string
	journalLimits  journal.Limits

	// SSH.
	passSSHKey bool
	sshKeyType string

	// Console.
	console       string
	transport     string
	background    string
	backgroundSet bool

	credentials credential.Set
	args        []string // of the kernel
	late        []string // those of args that look like options
}

// hostShell stands for the shell that a user has on the host.
const hostShell = "host"

// newSettings returns the defaults.
func newSettings() *settings {
	return &settings{
		cpus: arg.Topology{CPUs: 1}, ram: arg.Memory{Size: 2 << 30}, discard: true, imageFormat: "raw", diskType: "virtio-blk", diskCache: "writeback", diskBacking: "beside", virtio: "pci", ring: "split",
		notifyReady: true, passSSHKey: true, sshKeyType: "ed25519", console: "interactive", transport: "virtio",
		stopTimeout: 90, tpmState: tpmStateAuto, firmware: firmwareAuto, features: firmware.NewFeatures(),
	}
}

// check refuses what does not fit together.
func (s *settings) check() error {
	if s.directory != "" && s.image != "" {
		return errors.New("options --directory= and --image= cannot be combined, give one of them")
	}
	if len(s.initrds) > 0 && s.linux == "" {
		return errors.New("option --initrd= cannot be used without --linux=")
	}
	if s.privateUsersOn && s.directory == "" {
		return errors.New("option --private-users= can only be used with --directory=")
	}
	if s.journalLimits != (journal.Limits{}) && s.forwardJournal == "" {
		return errors.New("the options --forward-journal-…= can only be used with --forward-journal=")
	}
	if (s.bindUserShellSet || len(s.bindUserGroups) > 0) && len(s.bindUsers) == 0 {
		return errors.New("options --bind-user-shell= and --bind-user-group= can only be used with --bind-user=")
	}
	if s.growImage > 0 && s.imageFormat == "qcow2" {
		return errors.New("option --grow-image= cannot be used with --image-format=qcow2, grow the image with qemu-img")
	}
	if s.diskType == "pmem" && s.imageFormat == "qcow2" && s.image != "" {
		return errors.New("options --image-disk-type=pmem and --image-format=qcow2 cannot be combined: only a raw image can be persistent memory")
	}
	if s.growImage > 0 && s.ephemeral {
		return errors.New("options --grow-image= and --ephemeral cannot be combined: growing would change the image")
	}
	if len(s.ports) > 0 && !s.networkUser {
		return errors.New("option --port= can only be used with --network-user-mode")
	}
	if s.forwardJournal != "" && s.vsock == arg.No {
		return errors.New("option --forward-journal= needs vsock, drop --vsock=no")
	}
	if s.keepUnit && (s.slice != "" || len(s.properties) > 0) {
		return errors.New("options --slice= and --property= cannot be combined with --keep-unit: they are about a scope of the machine's own")
	}
	if err := s.checkFirmware(); err != nil {
		return err
	}
	return s.checkDeterministic()
}

func (s *settings) checkDeterministic() error {
	if !s.deterministic {
		if s.seed != 0 {
			return errors.New("option --seed= can only be used with --deterministic")
		}
		return nil
	}
	if s.tpm == arg.Yes {
		return errors.New("options --deterministic and --tpm=yes cannot be combined: a TPM's keys are random")
	}
	if s.kvm == arg.Yes {
		return errors.New("options --deterministic and --kvm=yes cannot be combined: only the software CPU is deterministic")
	}
	if s.cpus.CPUs > 1 {
		return fmt.Errorf("options --deterministic and --cpus=%d cannot be combined: one CPU is the most", s.cpus.CPUs)
	}
	return nil
}
