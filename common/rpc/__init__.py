"""gRPC plumbing that every service shares: server, channels, status mapping, life cycle."""
