"""Activations past the host: a tensor on one device goes in, and comes out on its neighbour's."""
