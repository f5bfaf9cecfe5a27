package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// sameScript does work whose result does not depend on the machine: "same OUT
// [PEER]" leaves results in OUT/same, which must be the same bytes everywhere,
// and in OUT/own signatures and messages that hold random numbers, which "same
// OUT PEER check" on another machine verifies. It says how each step went.
const sameScript = `#!/bin/bash
export LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin:/opt/go/bin HOME=/root
out=/mnt/$1 peer=/mnt/$2 in=/mnt/in work=$(mktemp -d /mnt/work.XXXXXX)
key=000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f
mkdir -p $out/same $out/own
step() { # NAME COMMAND...: the command's output is a result
	local name=$1 start=$SECONDS status
	shift
	"$@" >$out/same/$name 2>$work/log
	status=$?
	[ $status = 0 ] && echo "STEP $name ok $((SECONDS - start)) s" && return
	echo "STEP $name FAIL: status $status"
	tail -n 20 $work/log | cut -c1-300
}
stress() { # stress-ng verifies what it computes; its figures are no result
	stress-ng --temp-path $work --verify "$@" >$work/log 2>&1 && ! grep -E 'fail:|skipped: [^0]' $work/log >&2
}
digests() { for d in md5 sha1 sha256 sha512 sha3-256 blake2b512 blake2s256 sm3; do openssl dgst -$d $in/data || return; done; }
macs() {
	openssl mac -cipher AES-256-GCM -macopt hexkey:$key -macopt hexiv:${key:0:24} -in $in/data GMAC &&
		openssl mac -macopt hexkey:$key -in $in/data Poly1305 &&
		openssl mac -cipher AES-256-CBC -macopt hexkey:$key -in $in/data CMAC &&
		openssl mac -digest SHA512 -macopt hexkey:$key -in $in/data HMAC &&
		openssl mac -macopt hexkey:$key -in $in/data KMAC256
}
ciphers() {
	local c k
	for c in aes-128-cbc aes-256-cbc aes-256-ctr aes-256-ecb chacha20 camellia-256-cbc; do
		case $c in *128*) k=${key:0:32} ;; *) k=$key ;; esac
		openssl enc -$c -K $k -iv ${key:0:32} -in $in/data -out $work/c &&
			openssl enc -d -$c -K $k -iv ${key:0:32} -in $work/c | cmp - $in/data && echo $c $(sha256sum <$work/c) || return
	done
}
signatures() { # those without random numbers
	openssl dgst -sha256 -sign $in/rsa.pem $in/data | openssl base64 &&
		openssl pkeyutl -sign -rawin -inkey $in/ed25519.pem -in $in/small | openssl base64
}
own() {
	openssl dgst -sha256 -sign $in/ec.pem -out $out/own/ecdsa $in/data &&
		openssl dgst -sha256 -sigopt rsa_padding_mode:pss -sign $in/rsa.pem -out $out/own/pss $in/data &&
		openssl cms -encrypt -binary -aes-256-gcm -outform DER -in $in/data -out $out/own/gcm $in/cert.pem &&
		openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out $out/own/key.pem &&
		openssl pkey -check -noout -in $out/own/key.pem
}
others() {
	openssl dgst -sha256 -verify $in/ec.pub -signature $peer/own/ecdsa $in/data &&
		openssl dgst -sha256 -sigopt rsa_padding_mode:pss -verify $in/rsa.pub -signature $peer/own/pss $in/data &&
		openssl cms -decrypt -binary -inform DER -in $peer/own/gcm -inkey $in/ec.pem | cmp - $in/data &&
		openssl pkey -check -noout -in $peer/own/key.pem
}
big() { sha256sum <$in/big && sha256sum <$in/big && cp $in/big $work/big && b2sum <$work/big && gzip -1 <$in/big | sha256sum; }
cbuild() ( # Lua, and what it computes
	cp -r /usr/src/lua/src $work/lua && make -C $work/lua -j$(nproc) linux CC="gcc -O2" >&2 && cd $work/lua &&
		sha256sum *.o lua luac && ./lua $in/test.lua && ./luac -s -o - $in/test.lua | sha256sum
)
gobuild() ( # gofmt, with the standard library, and what it does
	cd /opt/go/src && GOROOT=/opt/go GOCACHE=$work/cache GOPATH=$work/go GOPROXY=off GOTOOLCHAIN=local CGO_ENABLED=0 \
		go build -trimpath -buildvcs=false -o $work/gofmt cmd/gofmt && sha256sum <$work/gofmt && $work/gofmt -s -r 'a + b -> b + a' fmt/print.go | sha256sum
)
if [ "$3" = check ]; then
	step others others
else
	for s in digests macs ciphers signatures own; do step $s $s; done
	[ -z "$2" ] || step others others
	for s in big cbuild gobuild; do step $s $s; done
	step cpu stress --cpu 1 --cpu-method all --cpu-ops 820
	step vm stress --vm 1 --vm-bytes 8M --vm-method all --vm-ops 20000
	step matrix stress --matrix 1 --matrix-method all --matrix-ops 600
	for s in ${STRESSORS}; do step stress-$s stress --$s $(nproc) -t 1; done
fi
rm -rf $work
echo ALL STEPS
`

// stressors are those of stress-ng whose --verify is about what a CPU does:
// arithmetic of every kind, memory order, code that changes, signals, faults.
const stressors = "atomic bitops branch cacheline context crypt dekker far-branch flipflop fma fp funccall funcret futex goto hash heapsort " +
	"icache longjmp matrix-3d mcontend membarrier memcpy misaligned monte-carlo mutex nop peterson powmath qsort regex rotate sigfpe sigill " +
	"sigsegv sigtrap stackmmap str switch tlb-shootdown trig tsc vecfp vecmath vecshuf vecwide wcs x86cpuid x86syscall zlib"

// sameLua exercises integers that wrap, floating point and its printing, strings
// and sorting.
const sameLua = `local x, t = 1, {}
for i = 1, 100000 do
	x = x * 6364136223846793005 + 1442695040888963407
	t[#t + 1] = (x >> 33) / (i + 0.5)
end
table.sort(t)
local s, words = 0.0, {}
for i, v in ipairs(t) do
	s = s + math.sin(v) * math.sqrt(i) / (1 + math.exp(-v % 7))
	if i % 1000 == 0 then words[#words + 1] = string.format("%.17g %a %d", v, s, i) end
end
print(string.format("%.17g", s))
print((table.concat(words, ","):gsub("%d%d", function(d) return d * 7 end)))
`

// sameDir makes the directory that is /mnt of every machine: the script, data,
// keys.
func sameDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	in := filepath.Join(dir, "in")
	writeFile(t, filepath.Join(dir, "same"), []byte(strings.ReplaceAll(sameScript, "${STRESSORS}", stressors)), 0o755)
	writeFile(t, filepath.Join(in, "test.lua"), []byte(sameLua), 0o644)
	data := make([]byte, 32<<20)
	// Any bytes do that gzip finds something in; these are always the same.
	for i, x := 0, uint32(1); i < len(data); i++ {
		x = x*1664525 + 1013904223
		data[i] = byte(x>>24) & byte(x>>16|0xe0)
	}
	writeFile(t, filepath.Join(in, "big"), data, 0o644)
	writeFile(t, filepath.Join(in, "data"), data[:3_000_001], 0o644)
	writeFile(t, filepath.Join(in, "small"), data[:3001], 0o644)
	openssl := guesttest.Tool(t, "openssl")
	for _, k := range [][]string{
		{"rsa", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"}, {"ec", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"}, {"ed25519", "ED25519"},
	} {
		private := filepath.Join(in, k[0]+".pem")
		toolOutput(t, openssl, append([]string{"genpkey", "-out", private, "-algorithm"}, k[1:]...)...)
		toolOutput(t, openssl, "pkey", "-in", private, "-pubout", "-out", filepath.Join(in, k[0]+".pub"))
	}
	toolOutput(t, openssl, "req", "-x509", "-new", "-key", filepath.Join(in, "ec.pem"), "-subj", "/CN=same", "-out", filepath.Join(in, "cert.pem"))
	return dir
}

// sameOnHost runs the script natively, in the tree that the guests boot.
func sameOnHost(t *testing.T, tree, goroot, dir string, args ...string) {
	t.Helper()
	cmd := exec.Command("sh", append([]string{"-e", "-c", `
mount --make-rprivate /
mount -t proc proc "$1/proc"; mount -t sysfs sysfs "$1/sys"; mount --bind /dev "$1/dev"
mount -t tmpfs tmp "$1/tmp"; mount -t tmpfs tmp "$1/opt"; mkdir "$1/opt/go"
mount --bind "$2" "$1/opt/go"; mount --bind "$3" "$1/mnt"
tree=$1; shift 3
exec chroot "$tree" /mnt/same "$@"`, "sh", tree, goroot, dir}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	t.Logf("on the host: %s", out)
	if err != nil || bytes.Contains(out, []byte("FAIL")) || !bytes.Contains(out, []byte("ALL STEPS")) {
		t.Fatalf("the host's own run failed: %v", err)
	}
}

// TestLongSameBytes: a Debian guest on the software CPU, with one CPU and with
// four, computes what the host computes natively, byte for byte: digests,
// ciphers and signatures by openssl, a C program built by gcc, a Go program, and
// stress-ng's methods, which verify themselves.
func TestLongSameBytes(t *testing.T) {
	kernel := guesttest.KernelAsset(t, "kernel-trixie")
	tree := debianTree(t, "tree-trixie-build", "/mnt/same guest host")
	goroot := strings.TrimSpace(string(toolOutput(t, "go", "env", "GOROOT")))
	dir := sameDir(t)
	sameOnHost(t, tree, goroot, dir, "host")
	for _, cpus := range []int{1, 4} {
		t.Run(fmt.Sprint(cpus), func(t *testing.T) {
			if err := os.RemoveAll(filepath.Join(dir, "guest")); err != nil {
				t.Fatal(err)
			}
			m := newMachine(t, t.TempDir(), kernel, "-x", "-D", tree, fmt.Sprintf("--cpus=%d", cpus), "-q", "--ram=1G", "--bind="+dir+":/mnt", "--bind-ro="+goroot+":/opt/go")
			m.start()
			if s := m.statusWithin(40 * time.Minute); s != 0 || !strings.Contains(m.out.String(), "ALL STEPS") {
				t.Errorf("status %d", s)
			}
			for line := range strings.Lines(m.out.String()) {
				if _, step, ok := strings.Cut(line, "STEP "); ok {
					t.Log(strings.TrimSpace(step))
					if strings.Contains(step, "FAIL") {
						t.Error(strings.TrimSpace(step))
					}
				}
			}
			sameResults(t, filepath.Join(dir, "host/same"), filepath.Join(dir, "guest/same"))
			sameOnHost(t, tree, goroot, dir, "check", "guest", "check")
		})
	}
}

// sameResults compares two machines' results.
func sameResults(t *testing.T, host, guest string) {
	t.Helper()
	entries, err := os.ReadDir(host)
	if err != nil || len(entries) < 10 {
		t.Fatalf("%d results on the host, %v", len(entries), err)
	}
	for _, e := range entries {
		want, err := os.ReadFile(filepath.Join(host, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(guest, e.Name())); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v, got\n%.3000s\nwant\n%.3000s", e.Name(), err, got, want)
		}
	}
}
