package lapic

import "testing"

// BenchmarkInterrupt is a message, its acknowledge and its end.
func BenchmarkInterrupt(b *testing.B) {
	r := newRig(b, 0, 1)
	r.config.Wake = nil
	a := r.APIC(1)
	for b.Loop() {
		r.Deliver(0xfee01000, 0x41)
		v, _ := a.Interrupt()
		a.Ack(v)
		a.Write(regEOI, 4, 0)
	}
}

// BenchmarkEvents is what a CPU pays between two blocks.
func BenchmarkEvents(b *testing.B) {
	a := newRig(b, 0).APIC(0)
	for b.Loop() {
		if a.Events() != 0 {
			b.Fatal("an event")
		}
	}
}

// BenchmarkTSCDeadline is a kernel's timer tick programmed by MSR.
func BenchmarkTSCDeadline(b *testing.B) {
	a := newRig(b, 0).x2(b).APIC(0)
	a.WriteMSR(0x832, 0x400ec)
	for b.Loop() {
		a.WriteMSR(MSRTSCDeadline, 1<<40)
	}
}
