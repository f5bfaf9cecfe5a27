package nsresource

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if !RunHolder() {
		os.Exit(m.Run())
	}
}

// service answers calls in the order of replies, and passes a file with the
// last; it notes methods and whether a user namespace came with each.
func service(t *testing.T, replies ...string) (path string, seen chan string) {
	t.Helper()
	path, seen = filepath.Join(t.TempDir(), "s"), make(chan string, 4)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		c, err := l.AcceptUnix()
		if err != nil {
			return
		}
		defer c.Close()
		for i, reply := range replies {
			msg, files, err := receive(c)
			if err != nil {
				return
			}
			var in struct {
				Method     string
				Parameters map[string]any
			}
			json.Unmarshal(msg, &in) //nolint:errcheck // then the method is wrong
			link := ""
			if len(files) == 1 {
				link, _ = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", files[0].Fd()))
			}
			closeAll(files)
			mode, _ := in.Parameters["mode"].(string)
			seen <- in.Method + " " + mode + " " + strings.Split(link, ":")[0]
			var oob []byte
			if i == len(replies)-1 {
				f, err := os.Open("/dev/null")
				if err == nil {
					oob = unix.UnixRights(int(f.Fd()))
					defer f.Close()
				}
			}
			c.WriteMsgUnix([]byte(reply+"\x00"), oob, nil) //nolint:errcheck // the client notices
		}
		io.Copy(io.Discard, c) //nolint:errcheck // until it ends
	}()
	return path, seen
}

func TestOpen(t *testing.T) {
	if ns, err := newNamespace(); err != nil {
		t.Skipf("no user namespaces here: %v", err)
	} else {
		ns.Close()
	}
	path, seen := service(t, `{"parameters":{"name":"x"}}`, `{"parameters":{"hostInterfaceName":"ns-1","interfaceFileDescriptor":0}}`)
	tap, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if tap.Name != "ns-1" || tap.File == nil || tap.Namespace == nil {
		t.Errorf("%+v", tap)
	}
	tap.File.Close()
	tap.Namespace.Close()
	for _, want := range []string{"io.systemd.NamespaceResource.AllocateUserRange  user", "io.systemd.NamespaceResource.AddNetworkToUserNamespace tap user"} {
		if got := <-seen; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	for reply, want := range map[string]string{
		`{"error":"io.systemd.NamespaceResource.UserNamespaceInterfaceNotSupported"}`: "refuses: io.systemd.NamespaceResource.UserNamespaceInterfaceNotSupported",
		`{"parameters":{"hostInterfaceName":"x","interfaceFileDescriptor":7}}`:        "sent no network interface",
		`nonsense`: "invalid character",
	} {
		path, _ := service(t, `{"parameters":{}}`, reply)
		if _, err := Open(t.Context(), path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", reply, err)
		}
	}
	if _, err := Open(t.Context(), path+"x"); err == nil || !strings.Contains(err.Error(), "cannot be reached") {
		t.Error(err)
	}
	// A service that says nothing.
	path, _ = service(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := Open(ctx, path); err == nil {
		t.Error("no error")
	}
}
