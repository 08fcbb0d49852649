"""What the agent decides, with no I/O."""
