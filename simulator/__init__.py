"""Clusters in virtual time: the router's core over many instances, arrivals, and what users would see."""
