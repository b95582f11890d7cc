"""The models that a router answers for: instances come in by what they serve, requests by what they name."""
