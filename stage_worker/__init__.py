"""The stage worker of one device: plans and activations go in, activations, or tokens, come out."""
