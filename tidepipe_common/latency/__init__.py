"""Cost models: what a step contains goes in, how long it takes comes out. Pure, but for files."""
