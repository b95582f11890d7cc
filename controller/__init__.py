"""Controller: one per pipeline (instance). Decides what the stages do next; TD-Pipe's control plane."""
