package usernet

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
)

// resolvConf is where the host's resolvers stand.
const resolvConf = "/etc/resolv.conf"

// resolvers returns the name servers to ask: they may change while the
// machine runs, so the file is read again for each flow.
func (n *Network) resolvers() []netip.AddrPort {
	if n.cfg.Resolvers != nil {
		return n.cfg.Resolvers
	}
	f, err := os.Open(resolvConf)
	if err != nil {
		return nil
	}
	defer f.Close()
	return parseResolvConf(bufio.NewScanner(f))
}

// parseResolvConf finds the nameserver lines (resolv.conf(5)).
func parseResolvConf(s *bufio.Scanner) []netip.AddrPort {
	var out []netip.AddrPort
	for s.Scan() {
		f := strings.Fields(s.Text())
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			out = append(out, netip.AddrPortFrom(a, dnsPort))
		}
	}
	return out
}

var errNoResolver = errors.New("the host has no name server")

// dialResolver connects to the first resolver that can be had. DNS messages
// pass through unchanged, so every record type and extension works.
func (n *Network) dialResolver(ctx context.Context, network string) (net.Conn, error) {
	err := errNoResolver
	for _, r := range n.resolvers() {
		var d net.Dialer
		var c net.Conn
		if c, err = d.DialContext(ctx, network, r.String()); err == nil {
			return c, nil
		}
	}
	return nil, err
}

// isRefused reports an ICMP error that a UDP socket passed on.
func isRefused(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH)
}
