"""Settings of services and clusters: flags, environment and files go in, checked values come out."""
