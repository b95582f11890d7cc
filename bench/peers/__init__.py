"""TidePipe beside its peers: a workload goes in, the seconds of each engine, run in turn, come out."""
