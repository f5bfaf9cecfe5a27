package main

import (
	"sync/atomic"
	"unsafe"
)

// window is a mapped BAR. The accessors do a single access of their size.
type window []byte

func (w window) read8(off int) uint8   { return *(*uint8)(unsafe.Pointer(&w[off])) }
func (w window) read16(off int) uint16 { return *(*uint16)(unsafe.Pointer(&w[off : off+2][0])) }
func (w window) read32(off int) uint32 {
	return atomic.LoadUint32((*uint32)(unsafe.Pointer(&w[off : off+4][0])))
}
func (w window) read64(off int) uint64 {
	return atomic.LoadUint64((*uint64)(unsafe.Pointer(&w[off : off+8][0])))
}
func (w window) write8(off int, v uint8)   { *(*uint8)(unsafe.Pointer(&w[off])) = v }
func (w window) write16(off int, v uint16) { *(*uint16)(unsafe.Pointer(&w[off : off+2][0])) = v }
func (w window) write32(off int, v uint32) { *(*uint32)(unsafe.Pointer(&w[off : off+4][0])) = v }
func (w window) write64(off int, v uint64) { *(*uint64)(unsafe.Pointer(&w[off : off+8][0])) = v }
