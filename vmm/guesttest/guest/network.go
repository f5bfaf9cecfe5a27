package main

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

// notify sends fields to the address in the credential vmm.notify_socket,
// "vsock-stream:CID:PORT", which the machine has as an SMBIOS string.
func notify(fields []string) error {
	raw, err := os.ReadFile("/sys/firmware/dmi/entries/11-0/raw")
	if err != nil {
		return err
	}
	_, after, ok := bytes.Cut(raw, []byte("vmm.notify_socket="))
	if !ok {
		return errors.New("no credential vmm.notify_socket")
	}
	value, _, _ := bytes.Cut(after, []byte{0})
	if plain, err := base64.StdEncoding.DecodeString(string(value)); err == nil {
		value = plain // of "io.systemd.credential.binary:"
	}
	var cid, port uint32
	if _, err := fmt.Sscanf(string(value), "vsock-stream:%d:%d", &cid, &port); err != nil {
		return fmt.Errorf("credential %q: %w", value, err)
	}
	c, err := vsock.Dial(cid, port, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := io.WriteString(c, strings.Join(fields, "\n")); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, c) // until the host has read it
	return err
}

// listen prints the notifications that come to a socket, each field on a line.
func listen(socket string) error {
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer c.Close()
	b := make([]byte, 64<<10)
	for {
		n, err := c.Read(b)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b[:n])) {
			fmt.Printf("NOTIFIED %s\n", strings.TrimSpace(line))
		}
	}
}

// echo serves connections of the host until one sends "quit".
func echo(port uint32) error {
	l, err := vsock.Listen(port, nil)
	if err != nil {
		return err
	}
	defer l.Close()
	fmt.Println("ECHO ready")
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		b := make([]byte, 64<<10)
		for {
			n, err := c.Read(b)
			if string(b[:n]) == "quit" {
				return c.Close()
			}
			if _, werr := c.Write(b[:n]); err != nil || werr != nil {
				break
			}
		}
		_ = c.Close()
	}
}

// connect opens n connections at once, keeps them all open, and then has each
// echo a line.
func connect(addr string, n int) error {
	conns := make([]net.Conn, n)
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			conns[i], errs[i] = net.DialTimeout("tcp", addr, time.Minute)
		})
	}
	wg.Wait()
	if err := first(errs); err != nil {
		return err
	}
	for i, c := range conns {
		wg.Go(func() { errs[i] = echoed(c, i) })
	}
	wg.Wait()
	return first(errs)
}

// first is the first error with the number of all.
func first(errs []error) error {
	bad := 0
	var err error
	for _, e := range errs {
		if e != nil {
			bad++
			err = e
		}
	}
	if bad == 0 {
		return nil
	}
	return fmt.Errorf("%d of %d connections: %w", bad, len(errs), err)
}

func echoed(c net.Conn, i int) error {
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	line := fmt.Sprintf("connection %d\n", i)
	if _, err := io.WriteString(c, line); err != nil {
		return err
	}
	got := make([]byte, len(line))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != line {
		return wrong("echo", string(got), line)
	}
	return nil
}

// datagrams sends n datagrams of 1,000 bytes to an echo server by one system call, so
// that the kernel leaves it to the card to cut them apart if that can, and wants all
// of them back, whole.
func datagrams(addr string, n int) error {
	const size = 1000
	c, err := net.Dial("udp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := raw.Control(func(fd uintptr) { serr = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size) }); err != nil || serr != nil {
		return errors.Join(err, serr)
	}
	data := make([]byte, n*size)
	for i := range data {
		data[i] = byte(i / size)
	}
	got, b := map[byte]bool{}, make([]byte, 64<<10)
	// A datagram may be lost on the host's side: all are sent again then.
	for range 5 {
		if _, err := c.Write(data); err != nil {
			return err
		}
		if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return err
		}
		for len(got) < n {
			k, err := c.Read(b)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return err
			}
			if k != size || !bytes.Equal(b[:k], bytes.Repeat(b[:1], size)) || int(b[0]) >= n {
				return fmt.Errorf("an answer of %d bytes, from %d to %d", k, b[0], b[k-1])
			}
			got[b[0]] = true
		}
		if len(got) == n {
			return nil
		}
	}
	return fmt.Errorf("%d of %d datagrams came back", len(got), n)
}

// serve echoes the connections to a TCP port until one sends "quit".
func serve(port string) error {
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	defer l.Close()
	fmt.Println("SERVE ready")
	quit := make(chan struct{})
	go func() {
		<-quit
		_ = l.Close()
	}()
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			b := make([]byte, 64<<10)
			for {
				n, err := c.Read(b)
				if string(b[:n]) == "quit" {
					close(quit)
					return
				}
				if _, werr := c.Write(b[:n]); err != nil || werr != nil {
					return
				}
			}
		}()
	}
}

// dial sends data to an echo server behind vsock, over n connections one after the
// other, and then ends it.
func dial(cid, port uint32, n int) error {
	data := bytes.Repeat([]byte("vsock "), 20_000)
	got := make([]byte, len(data))
	for i := range n {
		c, err := vsock.Dial(cid, port, nil)
		if err != nil {
			return fmt.Errorf("connection %d: %w", i, err)
		}
		sent := make(chan error, 1)
		go func() {
			_, err := c.Write(data)
			sent <- err
		}()
		_, err = io.ReadFull(c, got)
		if err = errors.Join(err, <-sent, c.Close()); err != nil {
			return fmt.Errorf("connection %d: %w", i, err)
		}
		if !bytes.Equal(got, data) {
			return fmt.Errorf("connection %d: the echo differs", i)
		}
	}
	c, err := vsock.Dial(cid, port, nil)
	if err != nil {
		return err
	}
	_, err = io.WriteString(c, "quit")
	return errors.Join(err, c.Close())
}
