"""The kernel as a datapath, through libbpf 1."""
