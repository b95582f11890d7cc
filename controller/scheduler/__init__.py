"""The pure scheduling core: events in, actions out; no I/O, no clock, no randomness."""
