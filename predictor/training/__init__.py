"""Training of length models: finished answers go in, a model with its card comes out."""

LEAST_ANSWERS = 50
"""Fewer teach nothing."""
