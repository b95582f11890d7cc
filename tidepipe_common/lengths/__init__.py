"""Output lengths: a prompt goes in, numbers, and quantiles of a trained model, come out."""
