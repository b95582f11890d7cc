"""Metrics of a process in Prometheus' format: one registry, read when it is scraped."""

from tidepipe_common.telemetry.telemetry import Telemetry

__all__ = ["Telemetry"]
