package soft

import "testing"

// TestLocked: four CPUs, more than some hosts have, count with LOCK INC, LOCK
// XADD, LOCK CMPXCHG16B and under a spin lock of XCHG and MOV: nothing is lost
// (SDM vol. 3A §9.1.2, §9.2.2), and waiting with PAUSE ends.
func TestLocked(t *testing.T) {
	const rounds, cpus = 20000, 4
	g := newGuest(t, Config{CPUs: cpus})
	for i := range cpus {
		g.start(i, 3, 0x8000)
	}
	// mov r8d,20000; L: lock inc qword [0x7000]; mov eax,1; lock xadd [0x7008],rax;
	// R: mov rax,[0x7020]; mov rdx,[0x7028]; lea rbx,[rax+1]; lea rcx,[rdx+2]; lock cmpxchg16b [0x7020]; jne R;
	// S: mov eax,1; xchg eax,[0x7040]; pause; test eax,eax; jne S; inc dword [0x7048]; mov dword [0x7040],0; dec r8d; jnz L;
	// lock inc dword [0x7010]; W: pause; cmp dword [0x7010],4; jne W; out 0xf4,al; hlt
	g.put(0x8000, "41b8204e0000f048ff042500700000b801000000f0480fc1042508700000488b042520700000488b142528700000488d5801488d4a02f0480fc70c252070000075dc"+
		"b80100000087042540700000f39085c075eeff042548700000c70425407000000000000041ffc8759bf0ff042510700000f390833c25107000000475f4e6f4f4")
	g.run()
	for _, tt := range []struct {
		name     string
		at, want uint64
	}{
		{"LOCK INC", 0x7000, rounds * cpus}, {"LOCK XADD", 0x7008, rounds * cpus},
		{"LOCK CMPXCHG16B, low", 0x7020, rounds * cpus}, {"LOCK CMPXCHG16B, high", 0x7028, 2 * rounds * cpus},
		{"the spin lock", 0x7048, rounds * cpus},
	} {
		if got := g.word(tt.at); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}
