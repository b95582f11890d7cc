"""Open-loop load: requests with their times go in, latencies and goodput of a live server come out."""
