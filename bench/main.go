// Command bench measures gvmspawn against its peers (QEMU, gokvm) on the same
// work in one run: the subjects of a case take turns, and the medians of n
// turns are compared. It prints a table, and with -json the same numbers for
// programs. A case whose peer or kernel is missing is skipped with the reason.
//
//	go run ./bench [-run REGEXP] [-n RUNS] [-json FILE] [-list]
//
// README.md has the meaning of each row and the results so far.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"

	"golang.org/x/sys/unix"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	if len(args) == 2 && args[0] == insideFlag {
		return runInside(args[1], stdout, stderr)
	}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(stderr)
	var (
		match  = fs.String("run", "", "run the cases that match this regular expression")
		n      = fs.Int("n", 3, "runs of each subject, from which the medians are taken")
		file   = fs.String("json", "", "write the numbers to this file, too")
		list   = fs.Bool("list", false, "list the cases")
		binary = fs.String("gvmspawn", "", "measure this binary instead of building one")
		only   = fs.String("subject", "", "run only the subjects that match this regular expression")
	)
	if err := fs.Parse(args); err != nil {
		return 2
	}
	re, err1 := regexp.Compile(*match)
	subjects, err2 := regexp.Compile(*only)
	if err := errors.Join(err1, err2); err != nil || *n < 1 {
		fmt.Fprintln(stderr, "bench: bad -run, -subject or -n:", err)
		return 2
	}
	if *list {
		for _, c := range cases {
			fmt.Fprintf(stdout, "%-12s %s\n", c.name, c.about)
		}
		return 0
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	e, err := newEnvironment(ctx, *binary, stderr)
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	defer e.close()
	e.only = subjects
	report := measureAll(e, re, *n)
	report.print(stdout)
	if *file != "" {
		if err := report.writeJSON(*file); err != nil {
			fmt.Fprintln(stderr, "bench:", err)
			return 1
		}
	}
	return 0
}

// cases are all that can be measured, in the order of the table.
var cases = []benchmark{
	startCase, bootSoftCase,
	firmwareCase("firmware-soft", "bookworm's cloud bzImage and an initramfs through OVMF on a software CPU: start, init, power-off", false),
	firmwareCase("firmware-tpm-soft", "the same with a TPM, into which OVMF measures itself and the kernel", true),
	treeSoftCase, computeCase, programsCase,
	kvmStartCase, kvmBootCase, kvmReadyCase, kvmMemoryCase,
	kvmFSCase, kvmMetaCase, kvmDAXCase, kvmVsockCase,
	memoryCase, memoryTreeCase, sizeCase,
	fsCase, metaCase, fsDAXCase,
	blkCase, netCase, vsockCase,
	fioCase("fio-blk", "virtio-blk", "virtio_blk"), fioCase("fio-scsi", "virtio-scsi", "virtio_scsi", "sd_mod"), fioCase("fio-nvme", "nvme", "nvme"),
	iperfCase, iperfTAPCase,
}
