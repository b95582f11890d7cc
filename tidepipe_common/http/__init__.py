"""Doors: how many may come in, how long they may take, and from which pages of a browser."""
