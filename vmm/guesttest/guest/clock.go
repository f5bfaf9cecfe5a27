package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// rtcDevice is the kernel's real-time clock.
const rtcDevice = "/dev/rtc0"

// rtcChecks are interrupts of the real-time clock, which all are alarms to Linux:
// one for each second, and one at a time of day.
func rtcChecks() error {
	f, err := os.OpenFile(rtcDevice, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fd := int(f.Fd())
	if err := unix.IoctlSetInt(fd, unix.RTC_UIE_ON, 0); err != nil {
		return fmt.Errorf("RTC_UIE_ON: %w", err)
	}
	start := time.Now()
	for range 2 {
		if err := rtcInterrupt(fd, unix.RTC_UF); err != nil {
			return fmt.Errorf("update: %w", err)
		}
	}
	if d := time.Since(start); d < 900*time.Millisecond || d > 4*time.Second {
		return fmt.Errorf("two updates within %v", d)
	}
	if err := unix.IoctlSetInt(fd, unix.RTC_UIE_OFF, 0); err != nil {
		return err
	}
	now, err := unix.IoctlGetRTCTime(fd)
	if err != nil {
		return err
	}
	then := time.Date(int(now.Year)+1900, time.Month(now.Mon+1), int(now.Mday), int(now.Hour), int(now.Min), int(now.Sec)+3, 0, time.UTC)
	alarm := unix.RTCWkAlrm{Enabled: 1, Time: unix.RTCTime{
		Sec: int32(then.Second()), Min: int32(then.Minute()), Hour: int32(then.Hour()),
		Mday: int32(then.Day()), Mon: int32(then.Month()) - 1, Year: int32(then.Year()) - 1900,
	}}
	start = time.Now()
	if err := unix.IoctlSetRTCWkAlrm(fd, &alarm); err != nil {
		return fmt.Errorf("RTC_WKALM_SET: %w", err)
	}
	if err := rtcInterrupt(fd, unix.RTC_AF); err != nil {
		return fmt.Errorf("alarm: %w", err)
	}
	if d := time.Since(start); d < 1900*time.Millisecond || d > 8*time.Second {
		return fmt.Errorf("an alarm in 3 seconds after %v", d)
	}
	return nil
}

// rtcInterrupt waits for the clock's next interrupt, whose cause is in the low
// byte of what is read (rtc(4)).
func rtcInterrupt(fd int, cause byte) error {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(p, 20_000); err != nil || n == 0 {
		return errors.Join(err, errors.New("no interrupt"))
	}
	var b [8]byte
	if _, err := unix.Read(fd, b[:]); err != nil {
		return err
	}
	if b[0]&cause == 0 {
		return fmt.Errorf("cause %#x", b[0])
	}
	return nil
}
