package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// acceptance is what systemd-vmspawn's users must find here, as this project
// listed it at its beginning, and the tests that prove it: DIRECTORY:TEST below
// cmd/gvmspawn, or TEST.
var acceptance = []struct{ item, tests string }{
	{"1 every option and error, status 1, --help, kernel arguments", "TestBadInput TestManyOptions TestLongCommandLine TestInformation TestOptionsTable TestLongOptionsOf262 TestLateOptions TestAlias"},
	{"2 a directory; an image with --linux and --initrd, and without", "TestBootDirectory TestBootDisks TestDiskImage TestBootOnKVM TestLongDebianImage"},
	{"3 root=PARTUUID= made, suppressed by root=, error without a root", "TestDiskImage TestBadInput internal/image:TestRootArgument"},
	{"4 credentials: file, socket, name, NUL, 100 KiB and more", "TestLongGuest TestLongGuestOnHost TestLongDebianImage TestHostileCredentials internal/credential:TestLoadArgument"},
	{"5 READY=1, --notify-ready, exit status, crash, reboot", "TestServiceManager TestBootDirectory TestLongGuestOnHost TestCrash TestBootEnds TestBootReboots"},
	{"6 --uuid, machine ID, --smbios11", "TestLongGuest TestBootDirectory"},
	{"7 --bind and --bind-ro, enforced by the host", "TestBootDirectory TestLongGuest"},
	{"8 signals power off, a second kills, ^] three times, terminal restored, pipes", "TestSignals TestTerminal TestPipes TestClosedOutput TestLongPowerButton"},
	{"9 CID, MAC and interface names", "internal/identity:TestVectors"},
	{"10 ssh with the ephemeral key, which is gone at the end", "TestLongGuest TestLongGuestOnHost"},
	{"11 --forward-journal to a file and a directory", "TestLongGuestOnHost TestLongServiceManager internal/journal:TestJournalRemote"},
	{"12 sd_listen_fds", "TestListenFDs"},
	{"13 registration, and none without a bus", "TestLongSystemdHost TestLongServiceManager TestHostTrouble TestHangingBus internal/machined:TestFields internal/machined:TestDBusFallback"},
	{"14 discard, --grow-image, --ephemeral, qcow2", "TestBootDisks"},
	{"15 user mode network", "TestBootNetwork"},
	{"16 start to READY=1, against systemd-vmspawn with QEMU", "../../bench:TestPromisedReadyOnKVM"},
	{"users: --bind-user, -n without privileges, trees of a range of users", "TestLongGuestOnHost TestLongUnprivilegedTAP TestLongShiftedTree"},
}

// TestAcceptance: the tests that the table names exist.
func TestAcceptance(t *testing.T) {
	known := map[string]map[string]bool{}
	for _, a := range acceptance {
		for _, name := range strings.Fields(a.tests) {
			dir := "."
			if d, n, ok := strings.Cut(name, ":"); ok {
				dir, name = d, n
			}
			if known[dir] == nil {
				known[dir] = testsOf(t, dir)
			}
			if !known[dir][name] {
				t.Errorf("%s: there is no %s in %s", a.item, name, dir)
			}
		}
	}
}

// testsOf are the test functions of a package.
func testsOf(t *testing.T, dir string) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]bool{}
	for _, f := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), f, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range parsed.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok {
				tests[fn.Name.Name] = true
			}
		}
	}
	return tests
}
