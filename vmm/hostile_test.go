package vmm_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// hostileRows says which tests prove what a hostile guest, or a bad host, may
// not achieve: each "directory: tests", from the root of the module. The rows are
// those that the comments of these tests number.
var hostileRows = []struct {
	row, what string
	tests     []string
}{
	{"1", "any register, any width, misaligned, read-only, write-only", []string{
		"virtio/virtiopci: TestAnyAccess FuzzRegisters", "virtio/virtiommio: TestAnyAccess FuzzRegisters", "devices/pci: FuzzAccesses"}},
	{"2", "queue numbers that do not exist", []string{"virtio: TestQueueIndex"}},
	{"3", "impossible queue sizes, and changes after DRIVER_OK", []string{
		"virtio: TestQueueRegisters", "virtio/virtiopci: TestFrozenAfterDriverOK", "virtio/virtiommio: TestFrozenAfterDriverOK"}},
	{"4", "queue addresses misaligned, straddling, wrapping, in ROM or a window", []string{"virtio: TestBadQueueAddress", "virtio/virtq: TestNew"}},
	{"5", "queues enabled and disabled at will, two on one ring", []string{"virtio: TestQueueRegisters TestSharedRing"}},
	{"6", "status bits in any order, storms of resets, resets under way", []string{
		"virtio: TestStatusMachine TestResetStorm TestSlowReset TestClose"}},
	{"7", "features that were not offered, or changed later", []string{"virtio: TestFeatures TestReservedFeatures TestQueueRegisters"}},
	{"8", "notifications for nothing, too early, too late, in floods", []string{"virtio: TestQueueIndex TestResetStorm", "vmm/kvm: TestDoorbellRing"}},
	{"9", "BARs that move, overlap, are sized; configuration window; MSI-X table", []string{
		"devices/pci: TestBARMoves TestBARs TestWrongBARs TestMSIXHostile TestMSIXMasking", "virtio/virtiopci: TestConfigWindow TestVectors"}},
	{"10", "doorbells after a reset, interrupts after they were turned off", []string{
		"virtio/virtiopci: TestDoorbellBinding TestVectors", "vmm/kvm: TestDoorbellClose TestMSI"}},
	{"11", "the available index jumps or goes back", []string{"virtio/virtq: TestHostileAvailIndex"}},
	{"12", "heads beyond the ring, or twice in flight", []string{"virtio/virtq: TestHostileDescriptors TestHostileInFlight TestPackedInFlight"}},
	{"13", "random suppression fields", []string{"virtio/virtq: TestHostileEvents TestPackedDriverEvent"}},
	{"14", "chains with loops, or without end", []string{"virtio/virtq: TestHostileDescriptors TestPackedHostile FuzzRing FuzzPacked"}},
	{"15", "buffers that wrap, straddle, are empty, or longer than memory", []string{
		"virtio/virtq: TestHostileDescriptors TestHostileChainLength TestPackedHostile", "vmm/mem: TestSlice FuzzSlice"}},
	{"16", "device-readable after device-writable, unknown flags", []string{"virtio/virtq: TestHostileDescriptors TestOddDescriptors TestPackedHostile"}},
	{"17", "indirect tables of any shape and place", []string{"virtio/virtq: TestHostileDescriptors TestPackedHostile TestPackedIndirectFlags"}},
	{"18", "another CPU rewrites what is being read", []string{"virtio/virtq: TestHostileRewrite", "virtio/fs: TestHostileDoubleFetch"}},
	{"19", "packed rings: wrap counters, buffer IDs, lists too long", []string{"virtio/virtq: TestPackedHostile TestPackedWrapCounter FuzzPacked"}},
	{"20", "disk requests: headers, types, sectors, ranges, status bytes, read-only, host errors, many in flight", []string{
		"virtio/blk: TestBadRequests TestReadOnly TestHostErrors TestGetID TestSlowRequests FuzzRequest", "virtio/scsi: TestBadCommands TestHeaders TestAddresses TestHostErrors FuzzCommand FuzzControl",
		"devices/nvme: TestBadCommands TestHostErrors TestFullCompletionQueue TestNobodyTakes TestResetInFlight FuzzCommand FuzzRegisters", "vmm/disk: TestFull TestTruncated TestVanished", "vmm/disk/qcow2: TestHostileHeaders TestHostileTables FuzzOpen"}},
	{"21", "packets of any size and shape, control commands, floods, the host's loopback", []string{
		"virtio/net: TestHostileTransmit TestHostileControl TestFilterBounds TestReceiverUsesSmallRings TestReceiverWithoutMerging FuzzQueues",
		"virtio/net/usernet: TestTransmitAnySize TestHostileFloods TestHostLoopbackIsNotReachable FuzzTransmit"}},
	{"22", "vsock packets: lengths, addresses, credit, floods, resets, half-closed connections", []string{
		"virtio/vsock: TestViolations TestRefusals TestFlood TestCreditIn TestCreditOut TestHalfClose TestSeqpacket TestConnectionLimit FuzzPackets"}},
	{"23", "FUSE requests: lengths, names, nodes, handles, links, special files, DAX", []string{
		"virtio/fs: TestHostileHeaders TestHostileBeforeInit TestHostileNames TestHostileParents TestHostileSymlinks TestHostileSwapRace",
		"virtio/fs: TestHostileForget TestHostileSpecialFiles TestHostileHandles TestHostileXattr TestHostileDescriptorExhaustion TestReadOnly",
		"virtio/fs: TestLockWaits TestStall TestDAXRequests TestDAXRepair FuzzRequest", "vmm/kvm: TestWindowOverFile"}},
	{"24", "console floods without a reader, input overruns, unknown control messages, resizes; the serial port's registers", []string{
		"virtio/console: TestSlowTerminal TestInput TestMultiport TestResize TestCloseBlocked TestResetStorm FuzzControl", "devices/serial: TestSlowHost TestNoFIFO TestLoopback TestDLAB TestEveryAccess FuzzAccess"}},
	{"25", "balloon pages beyond RAM or twice, large statistics, entropy without bound, flush floods, memory outside the region", []string{
		"virtio/balloon: TestInflate TestReporting TestStats FuzzQueues", "virtio/rng: TestBounds TestRate FuzzRequests", "virtio/pmem: TestFlood TestTruncate FuzzRequest", "virtio/memdev: TestRequests TestShortResponse FuzzRequest"}},
	{"26", "all ports and addresses, chips out of order", []string{
		"vmm/bus: TestUnclaimed", "devices/power: TestEveryAccess", "devices/cmos: TestEveryAccess", "devices/pit: TestEveryAccess TestStorm",
		"devices/pic: TestEveryAccess", "devices/ioapic: TestEveryAccess", "devices/lapic: TestEveryAccess TestTimerStorm",
		"devices/i8042: FuzzAccess", "devices/watchdog: FuzzAccess", "devices/pvpanic: FuzzAccess", "cmd/gvmspawn: TestBootHostile"}},
	{"26", "TPM: sizes beyond the buffer, starts during a run, cancels, localities, a backend that dies or hangs", []string{
		"devices/tpm: TestTISBadSize TestTISStates TestTISCancel TestTISLocality TestTISSeizeWhileRunning",
		"devices/tpm: TestCRBBadSize TestCRBStates TestCRBLocality TestCRBSeizeWhileRunning TestFailingBackend TestCloseWhileRunning FuzzRegisters",
		"cmd/gvmspawn/internal/swtpm: TestDeath TestHang"}},
	{"27", "exits: triple fault, internal error, halts, SIPI storms, string I/O, unknown ones, a CPU that never returns", []string{
		"vmm/kvm: TestShutdown TestInternalError TestUnknownExit TestOtherExits TestSIPIStorm TestStringPort TestKickNeverLost TestKickStorm FuzzExit FuzzGuest",
		"vmm/soft: TestTripleFault TestStrings FuzzCode", "vmm: TestRunnerPausesAndResumes TestRunnerEnds", "cmd/gvmspawn: TestCrash TestSilentResets"}},
	{"28", "the host: devices, terminals, descriptors, names, other machines, stopped clocks, kills", []string{
		"cmd/gvmspawn: TestBadKVM TestHostTrouble TestTAP TestTerminal TestClosedOutput TestSecondOfAName TestBootKilled TestSignals",
		"virtio/fs: TestHostileDescriptorExhaustion", "vmm/kvm: TestUnusable TestNotPermitted TestKickBeforeRun TestNoFilesLeft TestClock", "vmm/bus: TestHostClockPause"}},
}

// TestHostileRows: every test that the table names exists.
func TestHostileRows(t *testing.T) {
	have := map[string]map[string]bool{}
	for _, r := range hostileRows {
		for _, list := range r.tests {
			dir, names, ok := strings.Cut(list, ": ")
			if !ok {
				t.Fatalf("row %s: %q", r.row, list)
			}
			if have[dir] == nil {
				have[dir] = testsOf(t, filepath.Join("..", dir))
			}
			for name := range strings.FieldsSeq(names) {
				if !have[dir][name] {
					t.Errorf("row %s (%s): there is no %s in %s", r.row, r.what, name, dir)
				}
			}
		}
	}
}

// testsOf are the names of the test and fuzz functions of a directory.
func testsOf(t *testing.T, dir string) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, name := range files {
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, src, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil {
				names[f.Name.Name] = true
			}
		}
	}
	return names
}
