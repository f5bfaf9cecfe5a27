// Guest is the guest's half of the whole-machine tests: a static program that
// does what a shell script cannot. Each check prints a line, "CHECK name ok"
// or "CHECK name FAIL: why".
//
//	guest files DIR             what a file system must do, one by one
//	guest stress DIR            many writers at once, then "SUM …" of the tree
//	guest truncated FILE        map a file with DAX, and see its end become zeroes
//	guest sum DIR               "SUM …" of a tree
//	guest notify FIELD...       tell the service manager on the host, as systemd would
//	guest listen SOCKET         print what a service manager is told there, "NOTIFIED field"
//	guest echo PORT             echo one vsock connection after another until "quit"
//	guest dial CID PORT N       N vsock connections to an echo server, then end it
//	guest connect ADDR N        N parallel TCP connections to an echo server
//	guest datagrams ADDR N      N UDP datagrams at once to an echo server, and back
//	guest serve PORT            echo TCP connections, in the background's place
//	guest ports                 read and write all I/O ports
//	guest tpm-seal FILE         seal a secret to the TPM
//	guest tpm-unseal FILE       get it back, once
//	guest rtc                   the real-time clock's interrupts
//	guest pci DEVICE-ID...      garbage into the PCI functions with these IDs
//	guest memory ADDRESS SIZE   garbage into physical addresses, where no RAM is (kernel argument iomem=relaxed)
package main

import (
	"fmt"
	"os"
	"strconv"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest/treesum"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Println("guest: what to do?")
		os.Exit(2)
	}
	args := os.Args[2:]
	switch os.Args[1] {
	case "files":
		files(args[0])
	case "stress":
		stress(args[0])
		sum(args[0])
	case "truncated":
		check("truncated", truncated(args[0]))
	case "sum":
		sum(args[0])
	case "notify":
		check("notify", notify(args))
	case "listen":
		check("listen", listen(args[0]))
	case "echo":
		check("echo", echo(number(args[0])))
	case "dial":
		check("dial", dial(number(args[0]), number(args[1]), int(number(args[2]))))
	case "connect":
		check("connect", connect(args[0], int(number(args[1]))))
	case "datagrams":
		check("datagrams", datagrams(args[0], int(number(args[1]))))
	case "serve":
		check("serve", serve(args[0]))
	case "ports":
		check("ports", ports())
	case "tpm-seal":
		check("tpm-seal", tpmSeal(args[0]))
	case "tpm-unseal":
		check("tpm-unseal", tpmUnseal(args[0]))
	case "rtc":
		check("rtc", rtcChecks())
	case "pci":
		check("pci", pci(args))
	case "memory":
		check("memory "+args[0], memory(args[0], args[1]))
	default:
		fmt.Printf("guest: no command %s\n", os.Args[1])
		os.Exit(2)
	}
}

// check prints the verdict of a check.
func check(name string, err error) {
	if err != nil {
		fmt.Printf("CHECK %s FAIL: %v\n", name, err)
		return
	}
	fmt.Printf("CHECK %s ok\n", name)
}

func sum(dir string) {
	s, err := treesum.Sum(dir)
	if err != nil {
		fmt.Printf("CHECK sum FAIL: %v\n", err)
		return
	}
	fmt.Printf("SUM %s\n", s)
}

func number(s string) uint32 {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		fmt.Printf("guest: %s is not a number\n", s)
		os.Exit(2)
	}
	return uint32(n)
}
