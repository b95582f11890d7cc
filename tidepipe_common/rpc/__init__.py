"""gRPC for every service: servicers go in, guarded servers, channels and a life cycle come out."""

import os

# gRPC's core logs lost connections and taken ports by itself; we report both, in our own words.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
