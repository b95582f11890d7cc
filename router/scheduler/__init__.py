"""Pure parts of the router: which instance a sequence goes to, and the log of its output."""
