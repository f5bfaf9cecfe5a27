package main

import (
	"context"
	"fmt"
	"time"
)

// kvmVsockCase is vsockCase on genuine KVM: our device in user space, whose host
// side is a unix socket, against the kernel's, whose host side is AF_VSOCK. Guest
// program, kernel and VMM are the same.
var kvmVsockCase = benchmark{
	name:  "kvm-vsock",
	about: "one vsock stream each way: our device against vhost-vsock, on the testbed's KVM (time counts instructions)",
	prepare: func(e *environment) (*plan, error) {
		k := e.trixie()
		initrd, err := e.initrd("vsock", k, "vmw_vsock_virtio_transport")
		if err != nil {
			return nil, err
		}
		t, err := e.newInside(machine{kernel: k.Path, initrd: initrd, ram: 256, vsock: true, append: fmt.Sprintf("bench.jobs=vsock bench.mib=%d bench.times=%d", streamMiB, vsockRounds)})
		if err != nil {
			return nil, err
		}
		t.bed.Modules, t.bed.Timeout = []string{"vhost_vsock"}, 20*time.Minute
		const cid = "4242"
		m := t.machine
		m.share = "/root"
		argv := t.inside.gvmspawnArgs(m, "yes", "--machine=bench", "--vsock-cid="+cid)
		for _, j := range []insideJob{
			{Name: "gvmspawn", Argv: withDevice("rm -f /dev/vhost-vsock", argv), Vsock: "/run/systemd/vmspawn/bench/vsock"},
			{Name: "gvmspawn, vhost-vsock", Argv: withDevice("mknod /dev/vhost-vsock c 10 241", argv), Vsock: cid},
		} {
			j.Kind, j.Limit = insideVsock, fsLimit
			t.jobs = append(t.jobs, j)
		}
		out, err := t.run("vsock")
		if err != nil {
			return nil, err
		}
		p := &plan{metrics: []metric{{"vsock-to-host", "MiB/s", true}, {"vsock-to-guest", "MiB/s", true}, {"CPU time", "s", false}}, runs: 1}
		return p, insideSubjects(p, out, false)
	},
}

// vsockRounds is how often each stream runs; the last one counts, in code
// and memory that the others have warmed up.
const vsockRounds = 2

// withDevice runs a command after one of the shell's that makes or removes a device.
func withDevice(command string, argv []string) []string {
	return append([]string{"/bin/busybox", "sh", "-c", command + `; exec "$@"`, "sh"}, argv...)
}

// runVsock runs the guest program's half of the streams and ours.
func (j *insideJob) runVsock(ctx context.Context, limit time.Duration) (numbers, error) {
	s := guestSubject{limit: limit, argv: func() ([]string, error) { return j.Argv, nil }, word: "VSOCK-LISTENS"}
	s.beside = func(*process) error {
		for range vsockRounds {
			if err := vsockStreams(j.Vsock); err != nil {
				return err
			}
		}
		return nil
	}
	return s.run(ctx)
}
