"""A stage's decoder layers: token ids or hidden states go in, hidden states or logits come out."""
