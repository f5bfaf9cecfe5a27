package cmos

import (
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// isTime is whether reg shows the time.
func isTime(reg int) bool {
	switch reg {
	case regSeconds, regMinutes, regHours, regDayOfWeek, regDayOfMonth, regMonth, regYear, regCentury:
		return true
	}
	return false
}

// encode is v in the data mode of register B.
func (r *RTC) encode(v int) uint8 {
	if r.b()&bDM != 0 {
		return uint8(v)
	}
	return uint8(v/10<<4 | v%10)
}

// decode is the number that v stands for in the data mode.
func (r *RTC) decode(v uint8) int {
	if r.b()&bDM != 0 {
		return int(v)
	}
	return int(v>>4)*10 + int(v&0xf)
}

// pm is the afternoon's bit of a 12-hour value.
const pm = 0x80

func (r *RTC) encodeHour(h int) uint8 {
	if r.b()&b24 != 0 {
		return r.encode(h)
	}
	v := r.encode((h+11)%12 + 1)
	if h >= 12 {
		v |= pm
	}
	return v
}

func (r *RTC) decodeHour(v uint8) int {
	if r.b()&b24 != 0 {
		return r.decode(v)
	}
	h := r.decode(v&^pm) % 12
	if v&pm != 0 {
		h += 12
	}
	return h
}

// fields is the time as registers hold it: each is set on its own, and only
// together they are a date.
type fields struct {
	second, minute, hour, day, month, year, century int
}

func fieldsOf(t time.Time) fields {
	return fields{t.Second(), t.Minute(), t.Hour(), t.Day(), int(t.Month()), t.Year() % 100, t.Year() / 100}
}

// time is the date; what is none, such as February 30, becomes the day that
// it would be.
func (f *fields) time() time.Time {
	return time.Date(f.century*100+f.year, time.Month(f.month), f.day, f.hour, f.minute, f.second, 0, time.UTC)
}

func (r *RTC) timeRegister(reg int) uint8 {
	f := r.set
	if r.b()&bSET == 0 {
		f = fieldsOf(r.time())
	}
	switch reg {
	case regSeconds:
		return r.encode(f.second)
	case regMinutes:
		return r.encode(f.minute)
	case regHours:
		return r.encodeHour(f.hour)
	case regDayOfWeek:
		return r.encode(int(r.time().Weekday()) + 1)
	case regDayOfMonth:
		return r.encode(f.day)
	case regMonth:
		return r.encode(f.month)
	case regYear:
		return r.encode(f.year)
	}
	return r.encode(f.century % 100)
}

// setTimeRegister changes one field of the time. The day of the week follows
// from the date and cannot be set.
func (r *RTC) setTimeRegister(reg int, v uint8) {
	running := r.b()&bSET == 0
	if running {
		r.raise()
		r.set = fieldsOf(r.time())
	}
	n := r.decode(v)
	switch reg {
	case regSeconds:
		r.set.second = n
	case regMinutes:
		r.set.minute = n
	case regHours:
		r.set.hour = r.decodeHour(v)
	case regDayOfMonth:
		r.set.day = n
	case regMonth:
		r.set.month = n
	case regYear:
		r.set.year = n
	case regCentury:
		r.set.century = n
	}
	if running {
		r.seen = r.set.time()
		r.offset = r.seen.Sub(r.now())
		r.update()
	}
}

// wild is what makes an alarm register match everything: both top bits.
const wild = 0xc0

// nextAlarm is the first second after t that matches the alarm registers, or
// false if none does. It skips by hours, then minutes, then seconds, so it
// takes at most 24 + 60 + 60 steps, and a few at a day's end.
func (r *RTC) nextAlarm(t time.Time) (time.Time, bool) {
	match := func(reg, v int, decode func(uint8) int) bool {
		a := r.ram[reg]
		return a&wild == wild || decode(a) == v
	}
	t = t.Truncate(time.Second).Add(time.Second)
	for range 2 * (24 + 60 + 60) {
		switch {
		case !match(regHoursAlarm, t.Hour(), r.decodeHour):
			t = t.Truncate(time.Hour).Add(time.Hour)
		case !match(regMinutesAlarm, t.Minute(), r.decode):
			t = t.Truncate(time.Minute).Add(time.Minute)
		case !match(regSecondsAlarm, t.Second(), r.decode):
			t = t.Add(time.Second)
		default:
			return t, true
		}
	}
	return time.Time{}, false
}

// period is the periodic rate of register A (table 5), 0 for none.
func (r *RTC) period() time.Duration {
	rs := statusA(r.ram[regA]) & aRS
	switch rs {
	case 0:
		return 0
	case 1, 2: // 256 and 128 Hz
		rs += 7
	}
	return time.Second >> (16 - rs)
}

// raise sets the flags for what happened since the last look. Flags rise
// whether or not their interrupt is enabled.
func (r *RTC) raise() {
	t := r.time()
	last := r.seen
	r.seen = t
	if r.stopped() || !t.After(last) {
		return
	}
	if !t.Truncate(time.Second).Equal(last.Truncate(time.Second)) {
		r.flags |= cUF
	}
	if a, ok := r.nextAlarm(last); ok && !a.After(t) {
		r.flags |= cAF
	}
	if p := r.period(); p != 0 && !t.Truncate(p).Equal(last.Truncate(p)) {
		r.flags |= cPF
	}
}

// enabled is the flags whose interrupts register B enables; the bits agree.
func (r *RTC) enabled() statusC { return statusC(r.b() & (bPIE | bAIE | bUIE)) }

// update drives the line and sets the timer for the next event that is
// enabled and not yet flagged.
func (r *RTC) update() {
	r.flags &^= cIRQF
	if r.flags&r.enabled() != 0 {
		r.flags |= cIRQF
	}
	if level := r.flags&cIRQF != 0; level != r.level {
		r.level = level
		r.line.Set(level)
	}
	r.arm()
}

func (r *RTC) arm() {
	// While IRQF is on nothing more can happen until the guest reads C.
	waiting := r.enabled() &^ r.flags
	if waiting == 0 || r.flags&cIRQF != 0 || r.stopped() {
		r.timer.Arm(bus.Never)
		return
	}
	t := r.time()
	next := time.Duration(-1)
	earliest := func(at time.Time) {
		if d := at.Sub(t); next < 0 || d < next {
			next = d
		}
	}
	if waiting&cUF != 0 {
		earliest(t.Truncate(time.Second).Add(time.Second))
	}
	if waiting&cAF != 0 {
		if a, ok := r.nextAlarm(t); ok {
			earliest(a)
		}
	}
	if p := r.period(); waiting&cPF != 0 && p != 0 {
		earliest(t.Truncate(p).Add(p))
	}
	if next < 0 {
		r.timer.Arm(bus.Never)
		return
	}
	r.timer.Arm(r.clock.Now() + uint64(next))
}

// expired is called by the timer, perhaps early: the host's time of day and
// the machine's clock are two clocks.
func (r *RTC) expired() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.raise()
	r.update()
}
