"""The pure scheduler of an instance: events go in, actions come out; no I/O, clock or randomness."""
