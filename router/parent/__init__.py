"""This router as an instance of a parent router: its sequences go in, their tokens come out."""
