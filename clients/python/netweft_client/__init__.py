"""Typed Python client of netweft."""
