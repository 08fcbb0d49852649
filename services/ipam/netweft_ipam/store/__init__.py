"""Where pools and leases are kept: Redis, and its twin in memory, behind one protocol."""
