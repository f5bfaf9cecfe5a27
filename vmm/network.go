package vmm

import (
	"fmt"

	"github.com/gvmspawn/gvmspawn/devices/pci"
	vnet "github.com/gvmspawn/gvmspawn/virtio/net"
	"github.com/gvmspawn/gvmspawn/virtio/net/usernet"
)

func (m *Machine) addNICs(host *pci.Host) error {
	for i := range m.cfg.NICs {
		n := &m.cfg.NICs[i]
		var links []vnet.Link
		var mtu uint16
		if n.TAP != nil {
			tap, err := vnet.NewTAP(n.TAP)
			if err != nil {
				return err
			}
			m.onClose(tap.Close)
			links = append(links, tap)
		} else {
			var ports []usernet.Port
			for _, p := range n.Ports {
				ports = append(ports, usernet.Port(p))
			}
			network, err := usernet.New(usernet.Config{Ports: ports, HostLoopback: n.HostLoopback, Hostname: m.cfg.Name, Log: m.log})
			if err != nil {
				return err
			}
			m.onClose(network.Close)
			links = append(links, network)
			mtu = usernet.MTU
		}
		dev, err := vnet.New(vnet.Config{MAC: n.MAC, MTU: mtu, Links: links, Log: m.log})
		if err != nil {
			return err
		}
		if err := m.plug(host, fmt.Sprintf("virtio-net %d", i), dev); err != nil {
			return err
		}
	}
	return nil
}
