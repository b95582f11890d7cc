"""The router's side of instances: leases, links to their controllers, and which sequence is where."""
