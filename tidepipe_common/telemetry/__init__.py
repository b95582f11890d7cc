"""What a process tells of itself: logs, metrics in Prometheus' format, traces."""
