"""Clusters in virtual time: workload, hardware and policy go in, throughput and latencies come out."""
