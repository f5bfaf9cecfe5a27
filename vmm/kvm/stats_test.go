package kvm

import (
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// A CPU that ran and got all its memory has next to no fault without a result.
func TestUnresolvedFaults(t *testing.T) {
	needKVM(t)
	m := mem.New()
	defer m.Close()
	if _, err := m.Add("ram", 0, 1<<20, mem.RAM); err != nil {
		t.Fatal(err)
	}
	vm, err := New(Config{Memory: m, CPUs: 1, IO: &recorder{}, AllowEmulated: true})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	n, ok := vm.VCPU(0).(*VCPU).UnresolvedFaults()
	if !ok {
		t.Skip("this host's KVM does not count faults")
	}
	if n > 100 {
		t.Errorf("%d faults without a result", n)
	}
	if _, ok := vm.VCPU(0).(*VCPU).UnresolvedFaults(); !ok {
		t.Error("counters once only")
	}
	if err := vm.Close(); err != nil {
		t.Error(err)
	}
	if _, ok := vm.VCPU(0).(*VCPU).UnresolvedFaults(); ok {
		t.Error("counters of a closed CPU")
	}
}
