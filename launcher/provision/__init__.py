"""`ProvisionerService`: a wish for an instance goes in, its processes, here or on Ray, come out."""
