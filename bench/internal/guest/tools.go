package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// tool runs a program of Debian's, which lies in /tools with its libraries.
func tool(name string, args ...string) ([]byte, error) {
	c := exec.Command("/tools/ld.so", append([]string{"--library-path", "/tools", "/tools/" + name}, args...)...)
	var errs strings.Builder
	c.Stderr = &errs
	out, err := c.Output()
	if err != nil {
		err = fmt.Errorf("%s: %w: %.500s", name, err, strings.Join(strings.Fields(errs.String()+" "+string(out)), " "))
	}
	return out, err
}

// firstDisk is the machine's disk, of whatever type.
func firstDisk() (string, error) {
	for _, name := range []string{"vda", "sda", "nvme0n1"} {
		if _, err := os.Stat("/dev/" + name); err == nil {
			return "/dev/" + name, nil
		}
	}
	return "", errors.New("there is no disk")
}

// fioJobs are random and sequential direct I/O. The first second of each does
// not count: the code warms up.
func fioJobs(a arguments) error {
	disk, err := firstDisk()
	if err != nil {
		return err
	}
	for _, j := range []struct{ name, rw, block, depth, jobs string }{
		{"randread-1", "randread", "4k", "1", "1"},
		{"randread-32", "randread", "4k", "32", "1"},
		{"randread-4x32", "randread", "4k", "32", "4"},
		{"randwrite-1", "randwrite", "4k", "1", "1"},
		{"randwrite-32", "randwrite", "4k", "32", "1"},
		{"randwrite-4x32", "randwrite", "4k", "32", "4"},
		{"read-1M", "read", "1m", "1", "1"},
		{"write-1M", "write", "1m", "1", "1"},
	} {
		out, err := tool("fio", "--name=bench", "--filename="+disk, "--rw="+j.rw, "--bs="+j.block, "--iodepth="+j.depth, "--numjobs="+j.jobs,
			"--ioengine=libaio", "--direct=1", "--thread", "--group_reporting", "--norandommap", "--time_based", "--ramp_time=1",
			"--runtime="+strconv.Itoa(a.number("seconds", 3)), "--output-format=json")
		if err != nil {
			return err
		}
		type side struct {
			IOPS float64 `json:"iops"`
			BW   float64 `json:"bw"` // KiB/s
		}
		var r struct{ Jobs []struct{ Read, Write side } }
		if err := json.Unmarshal(out, &r); err != nil || len(r.Jobs) != 1 {
			return fmt.Errorf("fio's output: %w: %.300s", err, out)
		}
		s := r.Jobs[0].Read
		if strings.HasSuffix(j.rw, "write") {
			s = r.Jobs[0].Write
		}
		if j.block == "4k" {
			result("fio-"+j.name, s.IOPS)
		} else {
			result("fio-"+j.name, s.BW/1024)
		}
	}
	return nil
}

// iperfJobs are one TCP stream each way, a client of the host's server. The
// first second of each does not count.
func iperfJobs(a arguments) error {
	if err := network(a); err != nil {
		return err
	}
	for _, d := range []struct{ name, option string }{{"iperf3-to-host", ""}, {"iperf3-to-guest", "-R"}} {
		args := []string{"-c", a.text("server"), "-p", a.text("port"), "-t", strconv.Itoa(a.number("seconds", 5)), "-O", "1", "-J"}
		if d.option != "" {
			args = append(args, d.option)
		}
		out, err := tool("iperf3", args...)
		if err != nil {
			return err
		}
		var r struct {
			End struct {
				Received struct {
					Rate float64 `json:"bits_per_second"`
				} `json:"sum_received"`
			}
		}
		if err := json.Unmarshal(out, &r); err != nil || r.End.Received.Rate == 0 {
			return fmt.Errorf("iperf3's output: %w: %.300s", err, out)
		}
		result(d.name, r.End.Received.Rate/1e6)
	}
	return nil
}
