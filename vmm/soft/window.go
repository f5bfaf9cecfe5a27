package soft

import "github.com/gvmspawn/gvmspawn/vmm/mem"

// noteWindows warns, once a machine, that the guest met pages of a window that
// are not there: see mem's window.go. To a CPU a window is memory like any other.
func (vm *VM) noteWindows() {
	if vm.warn == nil {
		return
	}
	for _, w := range vm.windows {
		if w.Faults() != 0 && vm.windowNoted.CompareAndSwap(false, true) {
			vm.warn("a file shrank under a DAX mapping, or cannot be read: the guest sees zeros in its place")
		}
	}
}

// windowsOf lists the windows among the regions of m.
func windowsOf(m *mem.Memory) (windows []*mem.Region) {
	for _, r := range m.Regions() {
		if r.Kind == mem.Window {
			windows = append(windows, r)
		}
	}
	return windows
}
