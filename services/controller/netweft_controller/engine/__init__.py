"""What the controller does: short shells around the domain's decisions."""
