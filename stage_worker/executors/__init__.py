"""Executors, PyTorch or emulated: a plan and activations go in, activations, or tokens, come out."""
