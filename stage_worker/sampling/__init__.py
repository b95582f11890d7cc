"""The parts of sampling: random numbers, changes of logits, and the draw. See `stage_worker.sampler`."""
