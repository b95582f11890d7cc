"""The router's RPC surface: protobuf in, domain types on, and back."""
