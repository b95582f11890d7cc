"""Settings: flags, environment and files go in, checked values come out; one model for each service and clusters."""
