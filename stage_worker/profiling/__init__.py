"""Measures what a step takes on this device, with the executor that serves."""
