// Package linux puts a Linux kernel into guest memory and says in which state
// the boot CPU starts.
//
// A bzImage is a kernel wrapped into a program that unpacks it. Unpacking is
// done here, on the host: [Load] expands the payload straight into guest RAM,
// moves the few segments that do not land in their place, and enters the
// kernel proper. That skips the image's own decompressor, which runs at the
// guest's speed and builds page tables first. Where the kernel lies then is
// what its ELF headers say, unless [Boot.KASLR] is set: then its relocation table
// is applied on the host, too.
//
// # Documents
//
//   - Linux Documentation/arch/x86/boot.rst, "The Linux/x86 Boot Protocol", 2.15:
//     setup_header, 64-bit boot protocol, payload_offset.
//   - Linux Documentation/arch/x86/zero-page.rst: struct boot_params.
//   - Xen public/arch-x86/hvm/start_info.h and docs/misc/pvh.pandoc: direct boot ("PVH").
//   - System V gABI 4.1 chapter 5 and the AMD64 psABI: ELF.
//   - UAPI Group Specification "Unified Kernel Image": the PE sections of a UKI.
package linux
