"""Requests: admission, the log of each answer, who listens, and for how long they are remembered."""
