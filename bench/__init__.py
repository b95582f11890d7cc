"""Benchmarks: a workload or a study goes in, JSON, tables and pictures come out; nothing is asserted."""
