"""Domain types that every service shares: plans, requests, results, sampling settings, timelines."""
