"""gRPC plumbing that every service shares: server, channels, status mapping, life cycle."""

import os

# gRPC's core logs lost connections and taken ports by itself; we report both, in our own words.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
