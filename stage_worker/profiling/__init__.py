"""Profiling: steps of chosen contents go in to the executor that serves, their costs come out."""
