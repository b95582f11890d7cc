"""Attention over the paged KV pool: a step's queries, keys and values go in, attended heads come out."""
