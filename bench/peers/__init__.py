"""TidePipe beside its peers: same workload, cores and model, runs taken in turn."""
