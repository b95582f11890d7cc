"""The router's gRPC services: protobuf goes in and out, domain types pass on."""
