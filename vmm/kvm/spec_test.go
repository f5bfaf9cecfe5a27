package kvm

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// specConstants reads every KVM_ constant of spec.go, with its value.
func specConstants(t *testing.T) map[string]uint64 {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "spec.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]uint64{}
	ast.Inspect(file, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok || len(v.Values) != 1 || !strings.HasPrefix(v.Names[0].Name, "KVM_") {
			return true
		}
		values[v.Names[0].Name] = evaluate(t, v.Values[0])
		return true
	})
	if len(values) < 80 {
		t.Fatalf("only %d constants found in spec.go", len(values))
	}
	return values
}

// evaluate computes an integer literal or a shift of two.
func evaluate(t *testing.T, e ast.Expr) uint64 {
	t.Helper()
	switch e := e.(type) {
	case *ast.BasicLit:
		v, err := strconv.ParseUint(e.Value, 0, 64)
		if err != nil {
			t.Fatal(err)
		}
		return v
	case *ast.BinaryExpr:
		if e.Op == token.SHL {
			return evaluate(t, e.X) << evaluate(t, e.Y)
		}
	}
	t.Fatalf("spec.go has a constant that this test cannot read: %T", e)
	return 0
}

// structs are the kernel's structures and unions' members with our types and
// the C names of the fields whose place is compared, "" for those without one.
var structs = []struct {
	c      string
	typ    any
	fields string
}{
	{"struct kvm_regs", kvmRegs{}, "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags"},
	{"struct kvm_segment", kvmSegment{}, "base limit selector type present dpl db s l g avl unusable padding"},
	{"struct kvm_dtable", kvmDTable{}, "base limit padding"},
	{"struct kvm_sregs", kvmSregs{}, "cs ds es fs gs ss tr ldt gdt idt cr0 cr2 cr3 cr4 cr8 efer apic_base interrupt_bitmap"},
	{"struct kvm_userspace_memory_region", kvmUserspaceMemoryRegion{}, "slot flags guest_phys_addr memory_size userspace_addr"},
	{"struct kvm_pit_config", kvmPITConfig{}, "flags pad"},
	{"struct kvm_irq_level", kvmIRQLevel{}, "irq level"},
	{"struct kvm_msi", kvmMSI{}, "address_lo address_hi data flags devid pad"},
	{"struct kvm_irqfd", kvmIRQFD{}, "fd gsi flags resamplefd pad"},
	{"struct kvm_ioeventfd", kvmIOEventFD{}, "datamatch addr len fd flags -"},
	{"struct kvm_irq_routing_entry", kvmIRQRoutingEntry{}, "gsi type flags pad u"},
	{"struct kvm_cpuid_entry2", kvmCPUIDEntry2{}, "function index flags eax ebx ecx edx padding"},
	{"struct kvm_msr_entry", kvmMSREntry{}, "index reserved data"},
	{"struct kvm_clock_data", kvmClockData{}, "clock flags pad0 realtime host_tsc pad"},
	{"struct kvm_device_attr", kvmDeviceAttr{}, "flags group attr addr"},
	{"struct kvm_enable_cap", kvmEnableCap{}, "cap flags args pad"},
	{"struct kvm_guest_debug", kvmGuestDebug{}, "control pad arch"},
	{"struct kvm_fpu", kvmFPU{}, "fpr fcw fsw ftwx pad1 last_opcode last_ip last_dp xmm mxcsr pad2"},
	{"struct kvm_translation", kvmTranslation{}, "linear_address physical_address valid writeable usermode pad"},
}

// unions are the members of kvm_run that we read.
var unions = []struct {
	c      string
	typ    any
	fields string
}{
	{"io", exitIO{}, "direction size port count data_offset"},
	{"mmio", exitMMIO{}, "phys_addr data len is_write"},
	{"internal", exitInternal{}, "suberror ndata data"},
	{"emulation_failure", exitEmulation{}, "suberror ndata flags insn_size insn_bytes"},
	{"fail_entry", exitFailEntry{}, "hardware_entry_failure_reason cpu"},
	{"system_event", exitSystemEvent{}, "type"},
	{"debug.arch", exitDebug{}, "exception pad pc dr6 dr7"},
	{"eoi", exitEOI{}, "vector"},
	{"memory_fault", exitMemoryFault{}, "flags gpa size"},
}

// newer is what the headers of some supported distributions lack.
var newer = []string{"KVM_EXIT_MEMORY_FAULT", "memory_fault"}

// TestSpecAgainstHeaders compares all constants, sizes and offsets with the
// kernel's headers, by the C compiler.
func TestSpecAgainstHeaders(t *testing.T) {
	cc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("needs gcc")
	}
	if _, err := os.Stat("/usr/include/linux/kvm.h"); err != nil {
		t.Skip("needs the kernel's headers (linux-libc-dev)")
	}
	want := map[string]uint64{}
	var src bytes.Buffer
	src.WriteString("#include <stdio.h>\n#include <stddef.h>\n#include <linux/kvm.h>\nint main(void) {\n")
	ask := func(name, expr string, v uint64) {
		want[name] = v
		guarded := fmt.Sprintf("printf(\"%%s=%%llu\\n\", %q, (unsigned long long)(%s));\n", name, expr)
		for _, n := range newer {
			if strings.Contains(name, n) {
				guarded = "#ifdef KVM_EXIT_MEMORY_FAULT\n" + guarded + "#endif\n"
				break
			}
		}
		src.WriteString(guarded)
	}
	for name, v := range specConstants(t) {
		ask(name, name, v)
	}
	for _, s := range structs {
		typ := reflect.TypeOf(s.typ)
		ask("sizeof "+s.c, "sizeof("+s.c+")", uint64(typ.Size()))
		for i, f := range strings.Fields(s.fields) {
			if f != "-" {
				ask(s.c+"."+f, "offsetof("+s.c+", "+f+")", uint64(typ.Field(i).Offset))
			}
		}
	}
	askRun(ask)
	src.WriteString("return 0; }\n")
	for name, got := range compileAndRun(t, cc, src.Bytes()) {
		if got != want[name] {
			t.Errorf("%s is %#x, the kernel's header has %#x", name, want[name], got)
		}
	}
}

// askRun asks for the places in struct kvm_run, of which we have the head only.
func askRun(ask func(name, expr string, v uint64)) {
	const run = "struct kvm_run"
	at := func(f string) string { return "offsetof(" + run + ", " + f + ")" }
	var r kvmRun
	ask("immediate_exit", at("immediate_exit")+"*8+(1<<8)", 8+immediateExit) // byte 1 of control
	ask("exit_reason", at("exit_reason"), uint64(unsafe.Offsetof(r.exitReason)))
	ask("cr8", at("cr8"), uint64(unsafe.Offsetof(r.cr8)))
	ask("exit", at("io"), uint64(unsafe.Offsetof(r.exit)))
	ask("sizeof exit", "sizeof(((struct kvm_run *)0)->padding)", uint64(len(r.exit)))
	for _, u := range unions {
		typ := reflect.TypeOf(u.typ)
		for i, f := range strings.Fields(u.fields) {
			ask(u.c+"."+f, at(u.c+"."+f), uint64(unsafe.Offsetof(r.exit))+uint64(typ.Field(i).Offset))
		}
	}
}

// compileAndRun returns the lines name=value that a C program prints.
func compileAndRun(t *testing.T, cc string, src []byte) map[string]uint64 {
	t.Helper()
	dir := t.TempDir()
	c, bin := filepath.Join(dir, "spec.c"), filepath.Join(dir, "spec")
	if err := os.WriteFile(c, src, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(cc, "-o", bin, c).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err := exec.Command(bin).Output()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]uint64{}
	for line := range strings.Lines(string(out)) {
		name, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		values[name], err = strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
	}
	if len(values) < 150 {
		t.Fatalf("only %d values from the header", len(values))
	}
	return values
}

// TestSpecAgainstGokvm compares with a second implementation, where that is right.
func TestSpecAgainstGokvm(t *testing.T) {
	for name, sizes := range map[string][2]uintptr{
		"kvm_regs":                    {unsafe.Sizeof(kvmRegs{}), unsafe.Sizeof(gokvm.Regs{})},
		"kvm_sregs":                   {unsafe.Sizeof(kvmSregs{}), unsafe.Sizeof(gokvm.Sregs{})},
		"kvm_userspace_memory_region": {unsafe.Sizeof(kvmUserspaceMemoryRegion{}), unsafe.Sizeof(gokvm.UserspaceMemoryRegion{})},
		"kvm_cpuid_entry2":            {unsafe.Sizeof(kvmCPUIDEntry2{}), unsafe.Sizeof(gokvm.CPUIDEntry2{})},
		"kvm_clock_data":              {unsafe.Sizeof(kvmClockData{}), unsafe.Sizeof(gokvm.ClockData{})},
		"kvm_translation":             {unsafe.Sizeof(kvmTranslation{}), unsafe.Sizeof(gokvm.Translation{})},
		"kvm_msr_entry":               {unsafe.Sizeof(kvmMSREntry{}), unsafe.Sizeof(gokvm.MSREntry{})},
	} {
		if sizes[0] != sizes[1] {
			t.Errorf("struct %s has %d bytes, gokvm's %d", name, sizes[0], sizes[1])
		}
	}
	for name, v := range map[string][2]uintptr{
		"KVM_RUN":                    {KVM_RUN, gokvm.IIO(0x80)},
		"KVM_CREATE_VM":              {KVM_CREATE_VM, gokvm.IIO(0x01)},
		"KVM_CREATE_VCPU":            {KVM_CREATE_VCPU, gokvm.IIO(0x41)},
		"KVM_GET_REGS":               {KVM_GET_REGS, gokvm.IIOR(0x81, unsafe.Sizeof(kvmRegs{}))},
		"KVM_SET_REGS":               {KVM_SET_REGS, gokvm.IIOW(0x82, unsafe.Sizeof(kvmRegs{}))},
		"KVM_GET_SREGS":              {KVM_GET_SREGS, gokvm.IIOR(0x83, unsafe.Sizeof(kvmSregs{}))},
		"KVM_SET_SREGS":              {KVM_SET_SREGS, gokvm.IIOW(0x84, unsafe.Sizeof(kvmSregs{}))},
		"KVM_TRANSLATE":              {KVM_TRANSLATE, gokvm.IIOWR(0x85, unsafe.Sizeof(kvmTranslation{}))},
		"KVM_SET_USER_MEMORY_REGION": {KVM_SET_USER_MEMORY_REGION, gokvm.IIOW(0x46, unsafe.Sizeof(kvmUserspaceMemoryRegion{}))},
		"KVM_IRQ_LINE":               {KVM_IRQ_LINE, gokvm.IIOW(0x61, unsafe.Sizeof(kvmIRQLevel{}))},
		"KVM_IRQFD":                  {KVM_IRQFD, gokvm.IIOW(0x76, unsafe.Sizeof(kvmIRQFD{}))},
		"KVM_CREATE_PIT2":            {KVM_CREATE_PIT2, gokvm.IIOW(0x77, unsafe.Sizeof(kvmPITConfig{}))},
		"KVM_IOEVENTFD":              {KVM_IOEVENTFD, gokvm.IIOW(0x79, unsafe.Sizeof(kvmIOEventFD{}))},
		"KVM_SET_CLOCK":              {KVM_SET_CLOCK, gokvm.IIOW(0x7b, unsafe.Sizeof(kvmClockData{}))},
		"KVM_GET_CLOCK":              {KVM_GET_CLOCK, gokvm.IIOR(0x7c, unsafe.Sizeof(kvmClockData{}))},
		"KVM_SIGNAL_MSI":             {KVM_SIGNAL_MSI, gokvm.IIOW(0xa5, unsafe.Sizeof(kvmMSI{}))},
		"KVM_ENABLE_CAP":             {KVM_ENABLE_CAP, gokvm.IIOW(0xa3, unsafe.Sizeof(kvmEnableCap{}))},
		"KVM_SET_DEVICE_ATTR":        {KVM_SET_DEVICE_ATTR, gokvm.IIOW(0xe1, unsafe.Sizeof(kvmDeviceAttr{}))},
		"KVM_SET_GSI_ROUTING":        {KVM_SET_GSI_ROUTING, gokvm.IIOW(0x6a, 8)},
		"KVM_SET_CPUID2":             {KVM_SET_CPUID2, gokvm.IIOW(0x90, unsafe.Offsetof(kvmCPUID2{}.entries))},
		"KVM_GET_SUPPORTED_CPUID":    {KVM_GET_SUPPORTED_CPUID, gokvm.IIOWR(0x05, unsafe.Offsetof(kvmCPUID2{}.entries))},
		"KVM_SET_MSRS":               {KVM_SET_MSRS, gokvm.IIOW(0x89, unsafe.Offsetof(kvmMSRs1{}.entry))},
	} {
		if v[0] != v[1] {
			t.Errorf("%s is %#x, by gokvm's macros %#x", name, v[0], v[1])
		}
	}
}
