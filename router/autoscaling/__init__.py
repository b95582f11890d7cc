"""The number of instances: what is wanted, and the load, go in, calls of the provisioner come out."""
