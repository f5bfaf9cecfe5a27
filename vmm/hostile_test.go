package vmm_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// row is something that tests prove.
type row struct {
	row, what string
	tests     []string // "directory: tests", from the root of the module
}

// hostileRows says which tests prove what a hostile guest, or a bad host, may
// not achieve: each "directory: tests", from the root of the module. The rows are
// those that the comments of these tests number.
var hostileRows = []row{
	{"1", "any register, any width, misaligned, read-only, write-only", []string{
		"virtio/virtiopci: TestAnyAccess TestNotifyPort FuzzRegisters", "virtio/virtiommio: TestAnyAccess FuzzRegisters", "devices/pci: FuzzAccesses"}},
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
		"devices/pci: TestBARMoves TestBARs TestPortBARs TestWrongBARs TestMSIXHostile TestMSIXMasking", "virtio/virtiopci: TestConfigWindow TestVectors"}},
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
		"virtio/net/usernet: TestTransmitAnySize TestHostileSegments TestHostileFloods TestHostLoopbackIsNotReachable FuzzTransmit"}},
	{"22", "vsock packets: lengths, addresses, credit, floods, resets, half-closed connections", []string{
		"virtio/vsock: TestViolations TestRefusals TestFlood TestCreditIn TestCreditOut TestHalfClose TestSeqpacket TestConnectionLimit FuzzPackets"}},
	{"23", "FUSE requests: lengths, names, nodes, handles, links, special files, DAX", []string{
		"virtio/fs: TestHostileHeaders TestHostileBeforeInit TestHostileNames TestHostileParents TestHostileSymlinks TestHostileSwapRace",
		"virtio/fs: TestHostileForget TestHostileSpecialFiles TestHostileHandles TestHostileXattr TestHostileDescriptorExhaustion TestReadOnly",
		"virtio/fs: TestLockWaits TestStall TestDAXRequests TestDAXRepair FuzzRequest", "vmm/kvm: TestWindowOverFile"}},
	{"24", "console floods without a reader, input overruns, unknown control messages, resizes; the serial port's registers", []string{
		"virtio/console: TestSlowTerminal TestInput TestMultiport TestResize TestCloseBlocked TestResetStorm FuzzControl", "devices/serial: TestSlowHost TestNoFIFO TestLoopback TestDLAB TestEveryAccess FuzzAccess"}},
	{"25", "balloon pages beyond RAM or twice, large statistics, entropy without bound, flush floods, memory outside the region", []string{
		"virtio/balloon: TestInflate TestReporting TestWindow TestStats FuzzQueues", "virtio/rng: TestBounds TestRate FuzzRequests", "virtio/pmem: TestFlood TestTruncate FuzzRequest", "virtio/memdev: TestRequests TestShortResponse FuzzRequest"}},
	{"26", "all ports and addresses, chips out of order", []string{
		"vmm/bus: TestUnclaimed", "devices/power: TestEveryAccess", "devices/cmos: TestEveryAccess", "devices/pit: TestEveryAccess TestStorm",
		"devices/pic: TestEveryAccess", "devices/ioapic: TestEveryAccess", "devices/lapic: TestEveryAccess TestTimerStorm",
		"devices/i8042: FuzzAccess", "devices/watchdog: FuzzAccess", "devices/pvpanic: FuzzAccess", "cmd/gvmspawn: TestBootHostile"}},
	{"26", "TPM: sizes beyond the buffer, starts during a run, cancels, localities, a backend that dies or hangs", []string{
		"devices/tpm: TestTISBadSize TestTISStates TestTISCancel TestTISLocality TestTISSeizeWhileRunning",
		"devices/tpm: TestCRBBadSize TestCRBStates TestCRBLocality TestCRBSeizeWhileRunning TestFailingBackend TestCloseWhileRunning FuzzRegisters",
		"cmd/gvmspawn/internal/swtpm: TestDeath TestHang"}},
	{"26", "flash: commands out of order, writes outside, a kill in between; firmware configuration: DMA anywhere, of any length", []string{
		"devices/pflash: TestProgramErase TestBuffer TestFileFollows FuzzFlash", "vmm: TestSMMFlash", "devices/fwcfg: TestHostile FuzzPorts",
		"firmware/uefi: TestNotStore FuzzReadStore", "cmd/gvmspawn: TestLongVariablesKilled TestLongFirmwareHostile"}},
	{"26", "power management, CMOS, SMRAM and ECAM at the guest's will", []string{
		"devices/power: FuzzAccess FuzzICH9 TestSMIEnable", "devices/cmos: TestMemory FuzzAccess", "devices/pci: TestSMRAM TestPCIEXBAR TestECAMOverlap"}},
	{"27", "exits: triple fault, internal error, halts, SIPI storms, string I/O, unknown ones, a CPU that never returns", []string{
		"vmm/kvm: TestShutdown TestInternalError TestUnknownExit TestOtherExits TestSIPIStorm TestStringPort TestKickNeverLost TestKickStorm FuzzExit FuzzGuest",
		"vmm/soft: TestTripleFault TestStrings FuzzCode", "vmm: TestRunnerPausesAndResumes TestRunnerEnds", "cmd/gvmspawn: TestCrash TestSilentResets TestBootLifeOnKVM"}},
	{"28", "the host: devices, terminals, descriptors, names, other machines, stopped clocks, kills", []string{
		"cmd/gvmspawn: TestBadKVM TestHostTrouble TestTAP TestTerminal TestClosedOutput TestSecondOfAName TestBootKilled TestSignals TestBootLife",
		"virtio/fs: TestHostileDescriptorExhaustion", "vmm/kvm: TestUnusable TestNotPermitted TestKickBeforeRun TestNoFilesLeft TestClock", "vmm/bus: TestHostClockPause"}},
}

// deviceRows says which tests prove what the virtio devices and the disks promise.
var deviceRows = []row{
	{"blk", "raw files: reads, writes, discards, locks, direct I/O, ephemeral overlays", []string{
		"vmm/disk: TestRaw TestDirect TestLock TestOpenErrors TestOverlay", "cmd/gvmspawn: TestBootDisks TestLongDebianDisks"}},
	{"blk", "qcow2: every shape, backing files, compression, snapshots, lazy refcounts, our own images, kill -9", []string{
		"vmm/disk/qcow2: TestRandom TestBacking TestBackingPlace TestCompressed TestSnapshot TestRebuild TestCreate TestReuse TestCrash TestConcurrent", "cmd/gvmspawn: TestLongFio"}},
	{"blk", "features: serial, flush, CONFIG_WCE, MQ, SEG_MAX, discard, write zeroes, read-only", []string{
		"virtio/blk: TestConfig TestGetID TestWriteCache TestReadOnly TestReadWrite TestQueuesAndResets TestSlowRequests"}},
	{"blk", "both engines, and errors of the host", []string{"virtio/blk: TestEngines TestHostErrors", "vmm/disk: TestFull TestTruncated TestVanished", "cmd/gvmspawn: TestLongFio"}},
	{"net", "TAP: queues, offloads, MTU, carriers", []string{"virtio/net: TestMultiQueue TestTAPOffloads TestFeatureDependencies TestTAPMTU TestTAPFrames TestCarrier", "cmd/gvmspawn: TestTAP TestBootVHost TestLongUnprivilegedTAP"}},
	{"net", "user mode: TCP, UDP, ping, DNS, DHCPv4 and 6, router advertisements, published ports, no loopback", []string{
		"virtio/net/usernet: TestPublishedPorts TestDNSIsForwarded TestDHCP TestIPv6Configuration TestHostLoopbackIsNotReachable TestTCPToTheHostWhenAllowed TestTCPRests",
		"virtio/net/usernet: TestHeaderFollowsFeatures TestWithoutOffloads TestUDPOffloads TestFeatures TestPing", "cmd/gvmspawn: TestBootNetwork TestLongApt"}},
	{"net", "control queue: MAC and VLAN filters, announcement; link, MTU, speed; receive buffers", []string{
		"virtio/net: TestFilter TestFilterBounds TestLink TestMTU TestNumBuffers TestReceiverWaitsForRoom TestResets", "cmd/gvmspawn: TestMonitor"}},
	{"vsock", "streams and seqpackets, credit, half-closed connections, sockets of the host, many connections", []string{
		"virtio/vsock: TestGuestConnects TestDial TestHalfClose TestCreditOut TestCreditIn TestSeqpacket TestForward TestForwardSeqpacket TestMux TestLongConnections",
		"virtio/vsock: TestTxWithoutRxBuffers TestNoFeatures TestTransportReset TestDeriveCID", "vmm: TestBootVsock", "cmd/gvmspawn: TestBootVHost TestListenFDs"}},
	{"console", "several ports, sizes, flow control", []string{
		"virtio/console: TestMultiport TestResize TestSlowTerminal TestInput TestHangup TestEmergencyWrite", "cmd/gvmspawn/internal/terminal: TestResize"}},
	{"balloon", "inflation, reporting, hinting, statistics", []string{
		"virtio/balloon: TestInflate TestReporting TestPoison TestHinting TestWaitHinting TestHintedAndWritten TestHintingPoison TestCommandIDs TestStats TestArrange",
		"vmm/mem: TestRecord TestRecordPluggable TestRecordOthers TestRecordRace FuzzRecord", "virtio/virtq: TestLend", "vmm: TestRunnerStill", "cmd/gvmspawn: TestBootMemory TestBootReclaim TestBootReclaimOnKVM"}},
	{"rng, pmem, mem", "a bounded rate, DAX and flushes, memory that comes and goes", []string{
		"virtio/rng: TestRate TestBounds", "virtio/pmem: TestFlush TestPrivate TestTruncate", "virtio/memdev: TestRequests TestShrink TestReset", "cmd/gvmspawn: TestBootPmem TestBootMemory"}},
	{"mmio", "the same devices without PCI, packed rings", []string{"cmd/gvmspawn: TestBootMMIO", "virtio/virtiommio: TestRequestsAndReset TestInterrupts", "virtio/virtq: TestPackedWrapCounter FuzzPacked"}},
	{"SCSI, NVMe", "disks of all types, the root among several of its kind", []string{"cmd/gvmspawn: TestBootDiskTypes TestBootRootAmongDisks TestBootHotplug",
		"virtio/scsi: TestDisk TestCD TestTaskManagement TestInline", "devices/nvme: TestIdentify TestShadowDoorbells TestInline"}},
	{"all", "resets with requests in flight, no allocations", []string{
		"virtio/blk: TestLongResets TestAllocs", "virtio/console: TestLongResets TestAllocs", "virtio/vsock: TestLongResets TestAllocs", "virtio/scsi: TestResets TestLongResets TestAllocs",
		"virtio/net: TestResets TestLongResets TestAllocs", "devices/nvme: TestResetInFlight TestResetStorm TestAllocs", "virtio/balloon: TestAllocs", "virtio/rng: TestAllocs",
		"virtio/pmem: TestAllocs", "virtio/memdev: TestAllocs", "cmd/gvmspawn: TestLongSoak"}},
	{"all", "bad input is one sentence", []string{"cmd/gvmspawn: TestBadInput TestBadDevices TestBadKVM TestBadMachines TestBootRootUnknown"}},
}

// firmwareRows says which tests prove what firmware and the TPM promise.
var firmwareRows = []row{
	{"platform", "host bridge, LPC bridge, PM timer, SMI registers, CMOS, resets by 0xcf9, port 92 and the shell", []string{
		"devices/pci: TestPCIEXBAR TestECAMOverlap TestSMRAM TestIdentification TestPorts", "devices/power: TestICH9 TestAPM TestSMIEnable TestPMTimer TestLegacyResets",
		"devices/cmos: TestMemory", "vmm: TestBootFirmwareShell TestLongFirmwareShell TestLongFirmwareTrixie"}},
	{"platform", "fw_cfg: DMA, memory map, boot order, ACPI tables that firmware places, SMBIOS, kernels, opt/ items; debug port", []string{
		"devices/fwcfg: TestItems TestDirectory TestDMA", "firmware/acpi: TestLoadable TestPlacement", "firmware/smbios: TestWrite TestDmidecode",
		"vmm: TestBootFirmwareDisk TestLongFirmwareKernel TestLongFirmwareNetwork TestDebugPort TestShareCredentials"}},
	{"flash", "commands, a read-only slot on KVM, the file in the guest's order", []string{
		"devices/pflash: TestDetection TestProgramErase TestBuffer TestQuery TestDirect TestFileFollows TestFileFails", "vmm: TestFirmwareInTestbed TestShellInTestbed"}},
	{"boot", "from virtio-blk, SCSI, NVMe, CD-ROMs, by PXE and HTTP, from a directory; a Debian image, a kernel or UKI that is given; a BIOS", []string{
		"vmm: TestBootFirmwareDisk TestLongFirmwareBuses TestLongFirmwareNetwork TestLongFirmwareShare TestLongFirmwareDebian TestLongFirmwareKernel TestDebianInTestbed TestBootBIOS",
		"cmd/gvmspawn: TestBootFirmware TestBootFirmwareAuto"}},
	{"choice", "descriptors: overrides, masks, order, mappings, machine types, features; the words of --firmware=", []string{
		"cmd/gvmspawn/internal/firmware: TestList TestFind TestFeatures TestLoadFor", "cmd/gvmspawn: TestFirmwareWords TestBadFirmware"}},
	{"variables", "templates, where they are kept, whole after kill -9, one machine at a time, a listing", []string{
		"cmd/gvmspawn/internal/firmware: TestOpenState TestReadTemplate", "firmware/uefi: TestReadStore TestRealStore TestVars",
		"cmd/gvmspawn: TestBootFirmware TestFirmwareWords TestBadFirmware TestLongVariablesKilled TestLongFirmwareOnKVM"}},
	{"Secure Boot", "System Management Mode on both engines, hidden memory, flash for it alone; signed starts, unsigned does not", []string{
		"vmm/soft: TestSMI TestSMIByPort TestSMMBlocks", "vmm/kvm: TestSMM TestSMMRendezvous TestNoSMM", "devices/pci: TestSMRAM",
		"vmm: TestSMMConfig TestSMMFlash TestBootSMM TestLongSecureBoot TestSecureBootInTestbed TestSignedInTestbed"}},
	{"TPM", "both interfaces, localities, cancel; swtpm's state, its death; sealing over a reboot, quotes, the event log of a measured boot", []string{
		"devices/tpm: TestTISRegisters TestTISLocality TestTISStates TestTISCancel TestCRBRegisters TestCRBLocality TestCRBStates TestExecute TestInitFails",
		"cmd/gvmspawn/internal/swtpm: TestMissing TestSetup TestLibraries TestEventLog TestResetAndState TestDeath TestHang TestSilence", "firmware/acpi: TestBuildErrors TestIASL",
		"cmd/gvmspawn: TestTPMState TestTPMChildEnds TestBootTPM TestLongTPM TestLongSealedVolume TestLongMeasuredBoot TestLongFirmwareOnKVM TestBootDevicesOnKVM"}},
	{"health", "generation identifier, pvpanic, watchdog, the clock's alarm", []string{
		"cmd/gvmspawn: TestBootHealth TestBootDevicesOnKVM", "cmd/gvmspawn/internal/identity: TestGeneration", "devices/pvpanic: TestEvents", "devices/watchdog: TestCountdown TestStopAndLimits", "devices/cmos: TestAlarm"}},
	{"all", "bad firmware, variables, descriptors and TPMs are one sentence", []string{
		"firmware/uefi: TestBadImages TestBadVars TestNotStore", "cmd/gvmspawn/internal/swtpm: TestErrors", "cmd/gvmspawn: TestBadFirmware TestBadTPM TestBadInput", "vmm: TestFirmwareErrors"}},
}

// TestRows: every test that the tables name exists.
func TestRows(t *testing.T) {
	have := map[string]map[string]bool{}
	for _, r := range slices.Concat(hostileRows, deviceRows, firmwareRows) {
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
