"""Sampling: logits and a sequence's settings go in, a token with its log-probability comes out."""
