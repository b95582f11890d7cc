"""Instances as the router has them: placed sequences go in, their controllers' tokens come out."""
