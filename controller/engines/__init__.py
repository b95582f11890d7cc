"""Bodies of an instance that are other people's engines: in go our scheduler's plans, out come reports."""
