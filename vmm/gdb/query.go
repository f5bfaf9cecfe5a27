package gdb

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// query answers q and Q packets.
func (ses *session) query(p string) string {
	name, args, _ := strings.Cut(p, ":")
	switch {
	case name == "qSupported":
		return ses.supported(args)
	case name == "QStartNoAckMode":
		ses.noAck = true
		return replyOK
	case name == "qAttached":
		return "1" // so that a debugger that quits lets the machine go on
	case name == "qXfer" && strings.HasPrefix(args, "features:read:target.xml:"):
		return transfer(targetXML, strings.TrimPrefix(args, "features:read:target.xml:"))
	case name == "Qqemu.PhyMemMode":
		ses.physical = args == "1"
		return replyOK
	case name == "qqemu.PhyMemMode":
		if ses.physical {
			return "1"
		}
		return "0"
	}
	if ses.s.target == nil || ses.running {
		return replyNo
	}
	switch {
	case name == "qfThreadInfo":
		return ses.threads()
	case name == "qsThreadInfo":
		return "l"
	case name == "qC":
		return fmt.Sprintf("QC%x", ses.cpu+1)
	case strings.HasPrefix(name, "qThreadExtraInfo,"):
		return ses.describe(strings.TrimPrefix(name, "qThreadExtraInfo,"))
	case strings.HasPrefix(name, "qRcmd,"):
		return ses.monitor(strings.TrimPrefix(name, "qRcmd,"))
	}
	return replyNo
}

// supported tells what both sides can do.
func (ses *session) supported(args string) string {
	for f := range strings.SplitSeq(args, ";") {
		ses.swbreak = ses.swbreak || f == "swbreak+"
		ses.hwbreak = ses.hwbreak || f == "hwbreak+"
	}
	return fmt.Sprintf("PacketSize=%x;qXfer:features:read+;QStartNoAckMode+;vContSupported+;swbreak+;hwbreak+", maxPacket)
}

// transfer answers a read of an object: "offset,length".
func transfer(object, args string) string {
	off, n, err := addressAndLength(args)
	if err != nil || off > uint64(len(object)) {
		return replyInval
	}
	rest := object[off:]
	if n = min(n, maxPacket-1); uint64(len(rest)) > n {
		return "m" + rest[:n]
	}
	return "l" + rest
}

func (ses *session) threads() string {
	ids := make([]string, ses.s.target.CPUs())
	for i := range ids {
		ids[i] = fmt.Sprintf("%x", i+1)
	}
	return "m" + strings.Join(ids, ",")
}

// describe says what a thread is.
func (ses *session) describe(id string) string {
	cpu, err := ses.thread(id)
	if err != nil || cpu < 0 {
		return replyInval
	}
	return hex.EncodeToString(fmt.Appendf(nil, "CPU %d", cpu))
}

// monitor is the debugger's command of that name.
func (ses *session) monitor(arg string) string {
	b, err := hex.DecodeString(arg)
	if err != nil {
		return replyInval
	}
	line := strings.Join(strings.Fields(string(b)), " ")
	var out strings.Builder
	known, err := true, error(nil)
	switch line {
	case "physical", "physical on":
		ses.physical = true
	case "physical off":
		ses.physical = false
	case "help":
		out.WriteString("physical [on|off]  addresses are physical\n")
		fallthrough
	default:
		known, err = ses.s.target.Command(line, &out)
	}
	switch {
	case err != nil:
		fmt.Fprintln(&out, err)
	case !known:
		out.WriteString("Unknown command; try \"monitor help\".\n")
	}
	for text := out.String(); text != ""; {
		n := min(len(text), maxPacket/2-1)
		ses.send("O" + hex.EncodeToString([]byte(text[:n])))
		text = text[n:]
	}
	return replyOK
}
