"""This router as an instance of another one: the macro-instance router under an overall router."""
