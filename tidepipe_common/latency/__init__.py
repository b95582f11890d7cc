"""How long a step takes: profiles, rooflines, tensor parallelism, online correction. Pure except `files`."""
