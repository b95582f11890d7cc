"""The OpenAI-compatible HTTP API: JSON bodies go in, JSON and server-sent events come out."""
