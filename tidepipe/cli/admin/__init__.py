"""`tidepipe admin`: orders and questions of operators go in, the state of the cluster comes out."""
