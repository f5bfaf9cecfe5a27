package fs

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// inode is a file that the guest knows, pinned by an O_PATH descriptor: as
// long as it is open, the host cannot give its number to another file.
type inode struct {
	id  uint64 // node ID
	key inodeKey
	fd  int    // O_PATH; -1 for the synthetic root of a shared file
	fmt uint32 // S_IFMT part of the mode, which never changes

	refs    atomic.Int64  // the table's and those of running requests and handles
	nlookup atomic.Uint64 // what the guest may forget; only the table's lock lets it reach 0
	dax     bool          // use the DAX window, decided when the guest first saw it

	mu    sync.Mutex // guards stamp
	stamp stamp
}

// inodeKey identifies a file on the host. A bind mount shows the same file
// under another mount, with other rights; these stay apart.
type inodeKey struct {
	ino   uint64
	mnt   uint64
	major uint32
	minor uint32
}

func keyOf(st *unix.Statx_t) inodeKey {
	return inodeKey{ino: st.Ino, mnt: st.Mnt_id, major: st.Dev_major, minor: st.Dev_minor}
}

func (i *inode) isDir() bool  { return i.fmt == unix.S_IFDIR }
func (i *inode) isFile() bool { return i.fmt == unix.S_IFREG }

// synthetic marks the made-up root directory of a share of one file.
func (i *inode) synthetic() bool { return i.fd < 0 }

// put gives a reference back; the last one closes the descriptor.
func (i *inode) put() {
	if i.refs.Add(-1) == 0 && i.fd >= 0 {
		sysClose(i.fd)
		fdsInUse.Add(-1)
	}
}

// inodeTable is what the guest knows. The root is always in it.
type inodeTable struct {
	root *inode

	mu    sync.RWMutex // guards the rest
	byID  map[uint64]*inode
	byKey map[inodeKey]*inode
	next  uint64 // never reused, so that a forgotten ID stays unknown
}

func (t *inodeTable) init(root *inode) {
	t.root = root
	t.next = rootID
	t.clear()
}

// get returns the inode with a reference for the caller, or nil.
func (t *inodeTable) get(id uint64) *inode {
	if id == rootID {
		t.root.refs.Add(1)
		return t.root
	}
	t.mu.RLock()
	i := t.byID[id]
	if i != nil {
		i.refs.Add(1)
	}
	t.mu.RUnlock()
	return i
}

// find returns the inode for a file that the guest knows already, with one
// more lookup and a reference for the caller, or nil.
func (t *inodeTable) find(k inodeKey) *inode {
	t.mu.RLock()
	i := t.byKey[k]
	if i != nil {
		i.nlookup.Add(1)
		i.refs.Add(1)
	}
	t.mu.RUnlock()
	return i
}

// has reports whether the guest knows the file.
func (t *inodeTable) has(k inodeKey) bool {
	t.mu.RLock()
	_, ok := t.byKey[k]
	t.mu.RUnlock()
	return ok
}

// add enters a new inode with one lookup and a reference for the caller. If the
// file got in meanwhile it returns that inode, and n is closed.
func (t *inodeTable) add(n *inode) *inode {
	t.mu.Lock()
	if i := t.byKey[n.key]; i != nil {
		i.nlookup.Add(1)
		i.refs.Add(1)
		t.mu.Unlock()
		n.put()
		return i
	}
	t.next++
	n.id = t.next
	n.nlookup.Store(1)
	n.refs.Add(1)
	t.byID[n.id] = n
	t.byKey[n.key] = n
	t.mu.Unlock()
	return n
}

// forget takes n lookups back; the last one drops the inode. What the guest
// says is not trusted: unknown IDs are ignored and so is what it has not.
func (t *inodeTable) forget(id, n uint64) {
	if id == rootID || n == 0 {
		return
	}
	t.mu.Lock()
	i := t.byID[id]
	if i == nil {
		t.mu.Unlock()
		return
	}
	if have := i.nlookup.Load(); n < have {
		i.nlookup.Store(have - n)
		t.mu.Unlock()
		return
	}
	delete(t.byID, id)
	delete(t.byKey, i.key)
	t.mu.Unlock()
	i.put()
}

// clear forgets all but the root.
func (t *inodeTable) clear() {
	t.mu.Lock()
	old := t.byID
	t.byID = make(map[uint64]*inode)
	t.byKey = map[inodeKey]*inode{t.root.key: t.root}
	t.mu.Unlock()
	for _, i := range old {
		i.put()
	}
}

// size is how many inodes the guest knows, without the root.
func (t *inodeTable) size() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.byID)
}

// node returns the inode that the request is about.
func (r *request) node() (*inode, unix.Errno) { return r.nodeByID(r.hdr.NodeID) }

func (r *request) nodeByID(id uint64) (*inode, unix.Errno) {
	if i := r.d.nodes.get(id); i != nil {
		return i, 0
	}
	return nil, unix.ESTALE
}

// directory returns the inode with the given ID, which must be a directory.
func (r *request) directory(id uint64) (*inode, unix.Errno) {
	i, e := r.nodeByID(id)
	if e == 0 && !i.isDir() {
		i.put()
		return nil, unix.ENOTDIR
	}
	return i, e
}

// changeable returns the directory with the given ID for an operation that
// changes its entries.
func (r *request) changeable(id uint64) (*inode, unix.Errno) {
	i, e := r.directory(id)
	if e == 0 && i.synthetic() {
		i.put()
		return nil, unix.EROFS
	}
	return i, e
}

// forget serves FORGET.
func (r *request) forget() (int, unix.Errno) {
	r.d.nodes.forget(r.hdr.NodeID, view[forgetIn](r.in).Nlookup)
	return 0, 0
}

// batchForget serves BATCH_FORGET; it goes by what is there, not by the count.
func (r *request) batchForget() (int, unix.Errno) {
	left := view[batchForgetIn](r.in).Count
	for b := r.in[sizeOf[batchForgetIn]():]; left > 0 && len(b) >= sizeOf[forgetOne](); left-- {
		f := view[forgetOne](b)
		r.d.nodes.forget(f.NodeID, f.Nlookup)
		b = b[sizeOf[forgetOne]():]
	}
	return 0, 0
}
