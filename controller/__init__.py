"""The controller of one instance: sequences go in, plans for stages and tokens for routers come out."""
