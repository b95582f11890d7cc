"""Telemetry: what a process does goes in, logs, Prometheus metrics and traces come out."""
