"""What the controller knows and decides, without I/O."""
