"""Activations from one stage's device straight to the next one's, where both share a fabric."""
