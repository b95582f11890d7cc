"""Settings of services and clusters: one model each, of which flags, environment and reference are made."""
