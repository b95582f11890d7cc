"""Pure evaluation of length models: finished outputs go in, scores and the champion come out."""
