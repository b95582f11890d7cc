"""gRPC for every service: servicers go in, guarded servers, channels and a life cycle come out."""

import os

# gRPC's core logs lost connections and taken ports by itself; we report both, in our own words.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def without_pool() -> None:
    """Have gRPC read and write sockets in the thread that waits for them, and not in a pool of its own.

    For services, before gRPC is imported: a message then wakes one thread less at each end, and half as
    many wake-ups push a compute thread off its core. Who has set GRPC_EXPERIMENTS knows better.
    """
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
