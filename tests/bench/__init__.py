"""Benchmarks: what netweft takes beside what the kernel and the peers take, in the same run on the same machine."""
