"""Workloads: mixes, traces and arrivals go in, requests with their times come out."""
