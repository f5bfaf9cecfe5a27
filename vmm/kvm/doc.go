// Package kvm is the CPU engine on /dev/kvm: ioctls, kernel structures, virtual
// CPUs, interrupts and doorbells.
//
// Documents: Linux Documentation/virt/kvm/api.rst, x86/cpuid.rst, x86/msr.rst
// and devices/vcpu.rst of Linux 6.12 ("KVM API" below), include/uapi/linux/kvm.h,
// Intel SDM vol. 2A (CPUID) and 3A (APIC), AMD APM vol. 3 rev. 3.36 appendix E.
//
// # Order of assembly
//
// New makes the memory slots first: adding one while the interrupt
// controller and ioeventfds exist waits for an SRCU grace period, several
// milliseconds each. Then come the interrupt controller and the CPUs. CPU 0
// gets its CPUID and MSRs at once, the others on their own threads
// in their first Run, so that 64 CPUs are set up in parallel.
//
// # Threads and kicks
//
// Run must be called on a locked OS thread. One byte carries a kick: Kick sets
// immediate_exit in the shared kvm_run page and then sends the thread a signal;
// Run clears the byte with an atomic swap after KVM_RUN came back with EINTR,
// and whoever swapped a one away returns ExitKick. It is not lost, whenever it comes:
//
//   - Before Run published its thread: no signal is sent, but KVM_RUN looks
//     at the byte after that and returns EINTR at once.
//   - Between publishing and KVM_RUN, or while an exit is handled: the signal
//     hits user code and does nothing; KVM_RUN then sees the byte.
//   - In KVM_RUN: the signal ends it, or keeps it from entering the guest.
//   - After Run returned: the byte stays for the next Run, and a late signal
//     hits a thread that ignores it.
//
// The signal is SIGURG. The Go runtime handles it on every thread (it preempts
// goroutines with it) and drops one that it did not send, which no other
// signal offers without a handler of ours. So KVM_RUN is also interrupted for
// nothing now and then; Run goes on.
//
// KVM_RUN is an ordinary blocking system call to the Go scheduler, so the
// garbage collector never waits for a guest. In return a CPU that comes back
// needs a P at once: whoever runs the CPUs sets GOMAXPROCS to more than the
// number of CPUs and busy workers together (the machine does). And to Go's
// monitor a CPU looks like a goroutine that has been running for more than 10 ms:
// it would take the P away at each look, and each exit would take another and
// wake the monitor, a tenth of an exit's cost and more. So a CPU with many
// exits gives its P up itself, every few milliseconds.
//
// # Interrupt controller
//
// It is KVM's own, all of it: local APICs, IOAPIC, PIC. Its alternative, the split
// chip, would leave IOAPIC and PIC to us: less host kernel code that a
// guest reaches, but an exit for every end of a level-triggered interrupt, and
// a userspace IOAPIC in each device's way. Almost all interrupts here are
// MSI-X, for which both are the same, so the only difference that a guest
// could feel is against the split chip. Measured, it is next to none:
// in the testbed, whose clock counts instructions, a stock kernel goes from
// KVM_CREATE_VM through a boot with 325 interrupts of the serial port to its power-off
// in 4.42 s with all of it in the kernel and in 4.43 s with KVM's local APICs and
// devices/ioapic (Config.Split, TestInTestbedLinux). So there is nothing to gain
// from a second configuration to keep right, and the full chip also has the PIC
// and the PIT that firmware and old kernels want.
//
// A message-signalled interrupt needs no routing entry: Trigger hands the
// message to KVM_SIGNAL_MSI, one system call, and a guest that moves an
// interrupt to another CPU costs a store. Only a device that is driven from the
// kernel (vhost) asks for FD, which makes the eventfd, irqfd and route.
//
// The PIT, one timer that costs nothing until it is programmed, is there for
// kernels that know neither kvmclock nor the TSC deadline timer: they
// calibrate against its channel 2. KVM answers port 0x61 for it.
//
// # Doorbells
//
// A bell is an eventfd, bound to its address without length and value: that is
// the form that KVM can serve before it decodes the instruction. Wait is a
// blocking read on the caller's thread: one system call a wake-up, where the
// runtime's poller takes three, and none of its scheduling in between.
package kvm
