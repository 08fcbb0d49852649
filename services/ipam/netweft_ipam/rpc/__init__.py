"""The gRPC face: protobuf in, protobuf out."""
