package vmm

import (
	"errors"
	"fmt"
	"os"

	"github.com/gvmspawn/gvmspawn/devices/pci"
	vnet "github.com/gvmspawn/gvmspawn/virtio/net"
	"github.com/gvmspawn/gvmspawn/virtio/net/usernet"
	"github.com/gvmspawn/gvmspawn/virtio/vhost"
)

// linkSpeed is what the guest is told of its cable, in Mbit/s. No cable limits it,
// but bonding and the like want a number; vmxnet3 names the same.
const linkSpeed = 10_000

func (m *Machine) addNICs(host *pci.Host) error {
	for i := range m.cfg.NICs {
		n := &m.cfg.NICs[i]
		cfg := vnet.Config{MAC: n.MAC, Speed: linkSpeed, Log: m.log}
		var err error
		if n.TAP != nil {
			err = m.addTAP(&cfg, n)
		} else {
			err = m.addUserNetwork(&cfg, n)
		}
		if err != nil {
			return err
		}
		dev, err := vnet.New(cfg)
		if err != nil {
			return err
		}
		m.nics = append(m.nics, dev)
		name := fmt.Sprintf("virtio-net %d", i)
		if host == nil {
			err = m.plugMMIO(name, dev)
		} else {
			var a pci.Address
			a, err = m.plugPCI(host, name, dev)
			m.bootFrom(bootPathNIC, a)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// ErrNoNIC is returned by SetLink for a machine without network.
var ErrNoNIC = errors.New("the machine has no network card")

// SetLink plugs the network cables in or out. A guest whose cable comes back
// announces itself, so that switches find it again.
func (m *Machine) SetLink(up bool) error {
	if len(m.nics) == 0 {
		return ErrNoNIC
	}
	var errs []error
	for _, n := range m.nics {
		errs = append(errs, n.SetLink(up))
	}
	return errors.Join(errs...)
}

func (m *Machine) addUserNetwork(cfg *vnet.Config, n *NIC) error {
	var ports []usernet.Port
	for _, p := range n.Ports {
		ports = append(ports, usernet.Port(p))
	}
	network, err := usernet.New(usernet.Config{Ports: ports, HostLoopback: n.HostLoopback, Hostname: m.cfg.Name, Log: m.log})
	if err != nil {
		return err
	}
	m.onClose(network.Close)
	cfg.Links, cfg.MTU = []vnet.Link{network}, usernet.MTU
	return nil
}

// addTAP makes a link of each queue of a TAP device. With KVM the host's kernel moves
// the packets if it offers to.
func (m *Machine) addTAP(cfg *vnet.Config, n *NIC) error {
	for _, f := range append([]*os.File{n.TAP}, n.Queues...) {
		tap, err := vnet.NewTAP(f)
		if err != nil {
			return err
		}
		m.onClose(tap.Close)
		cfg.Links = append(cfg.Links, tap)
		if c := m.vhostNet(tap.FD()); c != nil && len(cfg.Carriers) == len(cfg.Links)-1 {
			cfg.Carriers = append(cfg.Carriers, c)
		}
	}
	if len(cfg.Carriers) != len(cfg.Links) {
		cfg.Carriers = nil
	}
	return nil
}

// vhostNetDevice is where the host's kernel offers to move packets.
const vhostNetDevice = "/dev/vhost-net"

// vhostNet opens that device for a queue of a TAP device, or returns nil.
func (m *Machine) vhostNet(tap int) *vhost.Net {
	if m.vm.Name() != "kvm" {
		return nil // its doorbells are no eventfds, and it must know who writes memory
	}
	f, err := os.OpenFile(vhostNetDevice, os.O_RDWR, 0)
	if err != nil {
		m.log.Debug("vhost-net is not used", "error", err)
		return nil
	}
	m.onClose(f.Close)
	c, err := vhost.NewNet(f, m.mem, tap)
	if err != nil {
		m.log.Debug("vhost-net is not used", "error", err)
		return nil
	}
	return c
}
