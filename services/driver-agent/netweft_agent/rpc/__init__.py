"""gRPC edge: protobuf to objects and back."""
