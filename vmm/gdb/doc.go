// Package gdb lets a debugger drive a machine: a stub of GDB's remote serial
// protocol. It is no part of what a guest can reach, but serves whoever can
// connect, so that the listener decides who that is.
//
// A machine's CPUs are threads 1, 2, … of one process. All of them stop and
// go together, unless the debugger lets a single one go (all-stop mode).
// Addresses are linear; they are translated by the page tables of the CPU that
// the debugger looks at, or not at all in physical mode.
//
// Documents: Debugging with GDB, appendix E (remote serial protocol) and G
// (target descriptions) of GDB 13; Intel SDM vol. 3A chapter 4 (paging).
package gdb
