"""The predictor of output lengths: prompts as numbers go in, quantiles come out; nobody depends on it."""
