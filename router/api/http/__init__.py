"""The OpenAI-compatible HTTP surface, in the router's own process and event loop."""
