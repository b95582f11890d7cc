"""Stand-ins for other services."""
