"""How the controller speaks to IPAM and to agents."""
