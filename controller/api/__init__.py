"""The controller's RPC surface."""
