"""What connects the pure core to the world: stages, routers, predictor."""
