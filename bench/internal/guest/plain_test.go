package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestPlainFile(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d, buf := plainFile(f.Fd()), make([]byte, 8)
	if n, err := d.writeAt([]byte("contents"), 3); n != 8 || err != nil {
		t.Fatal(n, err)
	}
	if n, err := d.readAt(buf, 5); n != 6 || err != nil || string(buf[:n]) != "ntents" {
		t.Errorf("%d bytes, %v: %q", n, err, buf)
	}
	if n, err := d.readAt(buf, 11); n != 0 || err != nil {
		t.Errorf("%d bytes at the end, %v", n, err)
	}
	f.Close()
	if _, err := d.readAt(buf, 0); err == nil {
		t.Error("a closed descriptor was read")
	}
}
