package soft

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sort"
	"strings"

	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
)

var errHighState = errors.New("no room below 2 GiB")

// option reports whether a word is in the comma-separated list GVMSPAWN_CPU:
// interp for no translation, v2 for Config.V2.
func option(word string) bool {
	return slices.Contains(strings.Split(os.Getenv("GVMSPAWN_CPU"), ","), word)
}

// startTranslators gives every CPU a code cache. Without executable memory the
// interpreter does all the work, and that is said once. GVMSPAWN_CPU=interp
// asks for that.
func (vm *VM) startTranslators(warn func(string, ...any)) {
	if option("interp") {
		return
	}
	size := min(max(codeBytes/len(vm.cpus), codeBytesMin), codeBytesMax) &^ 4095
	for _, c := range vm.cpus {
		j, err := newTranslator(c, size)
		if err != nil {
			if warn != nil {
				warn("the software CPU only interprets, which is slow: %v", err)
			}
			return
		}
		c.jit = j
	}
}

// jitStats counts which instructions leave translated code for the interpreter.
type jitStats struct {
	exits map[string]uint64
	kinds [4]uint64
}

func (st *jitStats) note(b *block, o *op, miss bool) {
	var in decode.Inst
	name := "end"
	if decode.Decode(&in, hostBytes(b.host+uint64(o.pos), int(o.len)), b.decodeMode()) == nil {
		name = in.Op.String()
		if in.Op == decode.MOV {
			name = fmt.Sprintf("mov%02x", in.Opcode)
		}
		if miss {
			name = "miss " + name
		}
	}
	st.exits[name]++
}

func (st *jitStats) String() string {
	var names []string
	var sum uint64
	for k, v := range st.exits {
		names = append(names, k)
		sum += v
	}
	sort.Slice(names, func(i, j int) bool { return st.exits[names[i]] > st.exits[names[j]] })
	var b strings.Builder
	fmt.Fprintf(&b, "exits %v, interpreted %d:", st.kinds, sum)
	for _, k := range names[:min(len(names), 40)] {
		fmt.Fprintf(&b, " %s=%d", k, st.exits[k])
	}
	return b.String()
}
