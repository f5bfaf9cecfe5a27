package main

import (
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm"
	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// BenchmarkAssemble is everything between the command line and the first guest
// instruction: memory, engine, devices, and the kernel unpacked and loaded.
func BenchmarkAssemble(b *testing.B) {
	if testing.Short() {
		b.Skip("fetches kernels")
	}
	for _, name := range []string{"kernel-bookworm", "kernel-trixie"} {
		b.Run(name, func(b *testing.B) {
			k, tree := guesttest.KernelAsset(b, name), guesttest.BusyboxTree(b, "")
			for b.Loop() {
				m, err := vmm.New(vmm.Config{
					CPUs: 1, RAM: 1 << 30, Accel: vmm.AccelSoft,
					Shares: []vmm.Share{{Tag: "root", Path: tree}},
					Boot:   vmm.Boot{Kernel: k.Path, CommandLine: "console=hvc0 root=root rootfstype=virtiofs", Root: &vmm.Root{Share: "root", ModuleTree: k.Dir}},
				})
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := m.Close(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
