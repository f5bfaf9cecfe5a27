package virtio

// ReadConfigBytes copies the device configuration space cfg from off into p,
// as [Device.ReadConfig] asks: what lies beyond its end reads as zero.
func ReadConfigBytes(p, cfg []byte, off uint64) {
	n := 0
	if off < uint64(len(cfg)) {
		n = copy(p, cfg[off:])
	}
	clear(p[n:])
}
