package kvm

import "testing"

func TestSignature(t *testing.T) {
	// "KVMKVMKVM\0\0\0" as KVM documents it (Linux x86/kvm/cpuid.rst).
	if got := signature(0x4b4d564b, 0x564b4d56, 0x4d); got != "KVMKVMKVM\x00\x00\x00" {
		t.Errorf("got %q", got)
	}
}

func TestHostCPUID(t *testing.T) {
	eax, ebx, ecx, edx := hostCPUID(0)
	// Leaf 0 spells the vendor EBX, EDX, ECX.
	if v := signature(ebx, edx, ecx); eax < 1 || v != "GenuineIntel" && v != "AuthenticAMD" {
		t.Errorf("CPUID.0: %#x, vendor %q", eax, v)
	}
}
