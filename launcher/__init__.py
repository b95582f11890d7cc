"""Clusters of real processes: a configuration goes in, processes that are kept alive come out."""
