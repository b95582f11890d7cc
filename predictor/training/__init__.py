"""From finished answers to a model: fitting, judging, drawing, describing."""

LEAST_ANSWERS = 50
"""Fewer teach nothing."""
