"""Pure rules of pools and leases: no I/O, no clock."""
