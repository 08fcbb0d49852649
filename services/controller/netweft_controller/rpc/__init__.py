"""The controller's gRPC services."""
