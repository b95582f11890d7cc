"""Open-loop load: requests go out when they are due, whatever became of the earlier ones."""
