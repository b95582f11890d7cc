"""Requests to serve: mixes, trace files and arrivals, for the simulator and for the load generator."""
