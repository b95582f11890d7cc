"""What drives the scheduler: calls, reports and time go in as events, its actions go out as RPCs."""
