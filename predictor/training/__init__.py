"""Training of length models: finished answers go in, a model with its card comes out."""
