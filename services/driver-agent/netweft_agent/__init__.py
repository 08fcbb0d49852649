"""The agent: the only writer of one host's kernel."""
