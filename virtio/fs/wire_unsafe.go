package fs

import "unsafe"

// wire is every fixed-size struct of the protocol: plain integers, no pointers.
type wire interface {
	inHeader | outHeader | attrOut | entryOut | forgetIn | forgetOne | batchForgetIn | getattrIn | setattrIn |
		mknodIn | mkdirIn | renameIn | rename2In | linkIn | openIn | createIn | openOut | releaseIn | flushIn |
		readIn | writeIn | writeOut | kstatfs | fsyncIn | setxattrIn | getxattrIn | getxattrOut | lkIn | lkOut |
		accessIn | initIn | initOut | interruptIn | fallocateIn | lseekIn | lseekOut | copyFileRangeIn |
		copyFileRangeOut | setupmappingIn | removemappingIn | removemappingOne | statxIn | statxOut | dirent
}

// view returns the struct at the start of b, which is our own copy of a
// message, never guest memory, and 8-byte aligned as all parts of a message
// are. It panics when b is too short: the dispatcher checked its length.
func view[T wire](b []byte) *T {
	_ = b[unsafe.Sizeof(*new(T))-1]
	return (*T)(unsafe.Pointer(unsafe.SliceData(b)))
}

// sizeOf is the size of a wire struct in bytes.
func sizeOf[T wire]() int { return int(unsafe.Sizeof(*new(T))) }
