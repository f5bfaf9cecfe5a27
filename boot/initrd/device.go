package initrd

import (
	"encoding/binary"
	"strconv"

	"golang.org/x/sys/unix"
)

// findDevice waits for the root's device and returns its path.
func findDevice(p *Program, r Root) Arg {
	const sys, classBlock = "/sys", "/sys/class/block"
	b := r.Block
	bad := fail(p, "cannot find root "+r.Source)
	p.Syscall(unix.SYS_MOUNT, p.String("sysfs"), p.String(sys), p.String("sysfs"), Int(0), Int(0))
	p.OnError(bad)
	file, content := "removable", "" // of whole disks
	if b.Partition > 0 {
		file, content = "partition", strconv.Itoa(b.Partition)+"\n"
	}
	p.Reserve()
	p.Retry(deviceRetries, unix.NsecToTimespec(int64(devicePause)), func(done func()) {
		p.FindDevice(classBlock, "../../devices/"+b.Place+"/", file, content)
		p.Then(func() {
			p.Syscall(unix.SYS_ACCESS, p.OtherKept(), Int(0))
			p.Then(done, nil)
		}, nil)
	})
	p.OnError(bad)
	if b.Size == 0 {
		p.Syscall(unix.SYS_UMOUNT2, p.String(sys), Int(0))
		return p.OtherKept()
	}
	loopDevice(p, b, bad)
	p.Syscall(unix.SYS_UMOUNT2, p.String(sys), Int(0))
	return p.String(loopPath)
}

// loopPath is the first loop device: nobody has asked for one before.
const loopPath = "/dev/loop0"

// loopDevice makes a part of the disk whose path is kept a device of its own,
// read-only (Linux include/uapi/linux/loop.h).
func loopDevice(p *Program, b *BlockDevice, bad func()) {
	p.Syscall(unix.SYS_OPEN, p.OtherKept(), Int(unix.O_RDONLY|unix.O_CLOEXEC))
	p.OnError(bad)
	p.Keep()
	p.Syscall(unix.SYS_OPEN, p.String("/dev/loop-control"), Int(unix.O_RDWR|unix.O_CLOEXEC))
	p.OnError(bad)
	p.KeepOther()
	p.Syscall(unix.SYS_IOCTL, p.OtherKept(), Int(unix.LOOP_CTL_GET_FREE), Int(0))
	p.Unless(0, bad)
	p.Syscall(unix.SYS_CLOSE, p.OtherKept())
	p.Syscall(unix.SYS_OPEN, p.String(loopPath), Int(unix.O_RDONLY|unix.O_CLOEXEC))
	p.OnError(bad)
	p.KeepOther()
	p.Syscall(unix.SYS_IOCTL, p.OtherKept(), Int(unix.LOOP_SET_FD), p.Kept())
	p.OnError(bad)
	info := make([]byte, binary.Size(unix.LoopInfo64{}))
	binary.LittleEndian.PutUint64(info[24:], uint64(b.Start)) // lo_offset
	binary.LittleEndian.PutUint64(info[32:], uint64(b.Size))  // lo_sizelimit
	p.Syscall(unix.SYS_IOCTL, p.OtherKept(), Int(unix.LOOP_SET_STATUS64), p.Bytes(string(info)))
	p.OnError(bad)
	p.Syscall(unix.SYS_CLOSE, p.OtherKept())
	p.Syscall(unix.SYS_CLOSE, p.Kept())
}
