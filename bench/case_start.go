package main

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// tinyMark is what the tiny kernel writes to the serial port.
const tinyMark = "!"

// tinyKernel is a PVH kernel (Xen's pvh.txt) whose first instructions write
// tinyMark to COM1; then it stops the machine by a triple fault.
func tinyKernel() []byte {
	const base, offset = 0x1000000, 0x1000
	code := []byte{
		0xba, 0xf8, 0x03, 0, 0, // mov edx, 0x3f8
		0xb0, tinyMark[0], // mov al, '!'
		0xee,             // out dx, al
		0xb0, '\n', 0xee, // and a line feed
		0x0f, 0x01, 0x1d, 0, 0, 0, 0, // lidt [the zeros at the end]
		0xcc, // int3
	}
	binary.LittleEndian.PutUint32(code[14:], base+uint32(len(code)))
	code = append(code, make([]byte, 16)...)

	var note bytes.Buffer
	const physEntry = 18 // XEN_ELFNOTE_PHYS32_ENTRY
	write := func(v any) { _ = binary.Write(&note, binary.LittleEndian, v) }
	write([]uint32{4, 8, physEntry})
	note.WriteString("Xen\x00")
	write(uint64(base))

	head := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Entry: base,
		Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 2, Shentsize: 64}
	copy(head.Ident[:], elf.ELFMAG)
	head.Ident[elf.EI_CLASS], head.Ident[elf.EI_DATA], head.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	size := uint64(note.Len())
	progs := []elf.Prog64{
		{Type: uint32(elf.PT_LOAD), Flags: 7, Off: offset, Vaddr: base, Paddr: base, Filesz: uint64(len(code)), Memsz: uint64(len(code)), Align: offset},
		{Type: uint32(elf.PT_NOTE), Flags: 4, Off: 64 + 2*56, Filesz: size, Memsz: size, Align: 4},
	}
	var out bytes.Buffer
	_ = binary.Write(&out, binary.LittleEndian, head)
	_ = binary.Write(&out, binary.LittleEndian, progs)
	out.Write(note.Bytes())
	out.Write(make([]byte, offset-out.Len()))
	out.Write(code)
	return out.Bytes()
}

var startMetrics = []metric{{"first instruction", "ms", false}, {"to end", "ms", false}, {"CPU time", "ms", false}}

// startCase is process start → first guest instruction on this host.
var startCase = benchmark{
	name:  "start",
	about: "start of the process to the first instruction of a tiny PVH kernel, 512 MiB, on a software CPU",
	prepare: func(e *environment) (*plan, error) {
		kernel := filepath.Join(e.dir, "tiny")
		if err := os.WriteFile(kernel, tinyKernel(), 0o644); err != nil {
			return nil, err
		}
		// The kernel does nothing with it, but loading one is part of every start.
		initrd, err := e.initrd("tiny", e.trixie())
		if err != nil {
			return nil, err
		}
		m := machine{kernel: kernel, initrd: initrd, ram: 512}
		p := &plan{metrics: startMetrics}
		argv := map[string][]string{"gvmspawn": e.gvmspawnArgs(m, "no")}
		order := []string{"gvmspawn"}
		qemu, err := exec.LookPath("qemu-system-x86_64")
		if err == nil {
			argv["QEMU TCG"] = qemuArgs(qemu, m, "tcg", "")
			order = append(order, "QEMU TCG")
		} else {
			p.skip("QEMU is not installed")
		}
		for _, name := range order {
			p.subjects = append(p.subjects, subject{name, func(ctx context.Context) (numbers, error) {
				return timeTiny(ctx, argv[name], tinyMark, time.Minute)
			}})
		}
		return p, nil
	},
}

// timeTiny runs a guest that prints a mark and stops, whatever the exit status
// that its end has. Times are in ms.
func timeTiny(ctx context.Context, argv []string, word string, limit time.Duration) (numbers, error) {
	p, err := launch(ctx, limit, argv, nil, word)
	if err != nil {
		return nil, err
	}
	defer p.kill()
	err = p.wait()
	at := p.seen.at(word)
	if at == 0 {
		return nil, p.failure(errors.Join(errors.New("the guest did not run"), err))
	}
	return numbers{"first instruction": ms(at), "to end": ms(p.end), "CPU time": 1000 * p.cpu()}, nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// sizeCase is the size of what has to be installed.
var sizeCase = benchmark{
	name:  "size",
	about: "size of the program's file, without the libraries and firmware that QEMU needs besides",
	prepare: func(e *environment) (*plan, error) {
		p := &plan{metrics: []metric{{"program", "MiB", false}}, runs: 1}
		p.subjects = append(p.subjects, subject{"gvmspawn", fileSize(e.gvmspawn)})
		if qemu, err := exec.LookPath("qemu-system-x86_64"); err == nil {
			p.subjects = append(p.subjects, subject{"QEMU", fileSize(qemu)})
		}
		return p, nil
	},
}

func fileSize(path string) func(context.Context) (numbers, error) {
	return func(context.Context) (numbers, error) {
		fi, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("size: %w", err)
		}
		return numbers{"program": float64(fi.Size()) / (1 << 20)}, nil
	}
}
