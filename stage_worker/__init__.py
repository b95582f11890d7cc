"""Stage worker: one per device; a slice of the layers and its KV blocks; TD-Pipe's execution plane."""
