"""Structured outputs: what routers check and stage workers build, from one place, and within limits."""
