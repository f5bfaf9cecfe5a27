// Package initrd makes the initial RAM disk that a modular kernel needs to
// reach its root file system: the kernel modules, and a first program that
// loads them, mounts the root and hands over to the root's own init.
//
// A distribution's kernel has virtio, virtio-fs and the disk file systems as
// modules, and its own initrd rarely knows virtio-fs. [Build] finds out from
// modules.builtin and modules.dep what has to be loaded, and returns nothing if
// that is nothing: then the kernel mounts its root by itself.
//
// The first program is made for this one boot. It has no loops to interpret a
// configuration, no libc and no runtime: it is a straight sequence of system
// calls whose arguments are known when it is assembled ([Program]), about 2 KiB
// long. It starts at once even on a slow software CPU, and no binary has to be
// shipped.
//
// # Documents
//
//   - Linux Documentation/driver-api/early-userspace/buffer-format.rst: newc archives.
//   - Linux Documentation/filesystems/ramfs-rootfs-initramfs.rst: what init may do.
//   - modules.dep(5), modules.builtin in Linux Documentation/kbuild/kbuild.rst.
//   - Intel SDM vol. 2: instruction encoding. AMD64 psABI §A.2.1: system calls,
//     §3.4.1: the stack at process start.
//   - System V gABI 4.1 chapter 5: ELF.
package initrd
