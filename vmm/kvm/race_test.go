//go:build race

package kvm

// The race detector's instrumentation allocates.
func init() { raceDetector = true }
