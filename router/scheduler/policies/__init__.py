"""Routing policies as values: see `catalog` for their names."""
