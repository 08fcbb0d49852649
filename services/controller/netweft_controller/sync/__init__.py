"""The controller's copy of all intent, and who is told of its changes."""
