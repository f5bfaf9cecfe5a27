package guesttest

import (
	"strings"
	"testing"
	"time"
)

func TestTestbedHasGenuineKVM(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a machine in QEMU")
	}
	res := Testbed{
		Script:  "ls -l /dev/kvm && grep -o -w svm /proc/cpuinfo | head -1; exit 7",
		Timeout: 3 * time.Minute,
	}.Run(t)
	if res.Status != 7 || !strings.Contains(res.Output, "/dev/kvm") || !strings.Contains(res.Output, "svm") {
		t.Errorf("status %d, output:\n%s", res.Status, res.Output)
	}
}

func TestParseResult(t *testing.T) {
	res, err := parseResult([]byte("boot\r\n" + jobStart + "\nhello\n\n" + jobEnd + "3\nreboot"))
	if err != nil || res.Status != 3 || res.Output != "hello\n" {
		t.Errorf("got %+v, %v", res, err)
	}
	for _, bad := range []string{"", jobStart + "\nhello", jobStart + "\n" + jobEnd + "x\n"} {
		if _, err := parseResult([]byte(bad)); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
}
