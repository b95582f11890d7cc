"""TidePipe tried on one GPU, within eight minutes: `make gpu-check` (see __main__.py)."""
