"""The address service: pools and leases on Redis."""
