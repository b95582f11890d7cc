"""The stage worker's RPC surface."""
