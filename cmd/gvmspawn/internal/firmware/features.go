package firmware

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/arg"
)

// Names of features that selection treats by themselves.
const (
	featureEnrolledKeys = "enrolled-keys"
	featureRequiresSMM  = "requires-smm"
	featureSecureBoot   = "secure-boot"
)

// FeatureNames are the features that QEMU's descriptors may name
// (docs/interop/firmware.json, FirmwareFeature).
var FeatureNames = []string{
	"acpi-s3", "acpi-s4", "amd-sev", "amd-sev-es", "amd-sev-snp", featureEnrolledKeys, "host-uefi-vars",
	"intel-tdx", featureRequiresSMM, featureSecureBoot, "verbose-dynamic", "verbose-static",
}

// Features is what a firmware must have and must not have: --firmware-features=
// and --secure-boot=. Requiring wins over excluding, whichever came last.
type Features struct {
	required, excluded map[string]bool
}

// NewFeatures returns the default: no keys enrolled, as these would refuse what
// the user made.
func NewFeatures() *Features {
	return &Features{required: map[string]bool{}, excluded: map[string]bool{featureEnrolledKeys: true}}
}

// Set takes a list such as "secure-boot,~amd-sev"; an empty one forgets all
// earlier ones, the default too.
func (f *Features) Set(list string) error {
	if list == "" {
		clear(f.required)
		clear(f.excluded)
		return nil
	}
	for name := range strings.SplitSeq(list, ",") {
		to := f.required
		if n, negated := strings.CutPrefix(name, "~"); negated {
			name, to = n, f.excluded
		}
		if !slices.Contains(FeatureNames, name) {
			return fmt.Errorf("unknown firmware feature %s, see --firmware-features=list", arg.Printable(name))
		}
		to[name] = true
	}
	return nil
}

// SetSecureBoot is --secure-boot=: a shorter way to write the feature.
func (f *Features) SetSecureBoot(s string) error {
	t, err := arg.ParseTristate(s)
	if err != nil {
		return err
	}
	delete(f.required, featureSecureBoot)
	delete(f.excluded, featureSecureBoot)
	switch t {
	case arg.Yes:
		f.required[featureSecureBoot] = true
	case arg.No:
		f.excluded[featureSecureBoot] = true
	}
	return nil
}

// Required reports whether any feature is required: then there must be firmware.
func (f *Features) Required() bool { return len(f.required) > 0 }

// Lacking says which required feature is not among those that a firmware has, or nil.
func (f *Features) Lacking(has []string) error {
	for _, name := range slices.Sorted(maps.Keys(f.required)) {
		if !slices.Contains(has, name) {
			return errors.New("lacks the feature " + name)
		}
	}
	return nil
}

// check says what a firmware with the features has too much or too little.
func (f *Features) check(has []string) error {
	if err := f.Lacking(has); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(f.excluded)) {
		if !f.required[name] && slices.Contains(has, name) {
			return errors.New("has the feature " + name)
		}
	}
	return nil
}
