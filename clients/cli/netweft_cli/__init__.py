"""The netweft command line."""
