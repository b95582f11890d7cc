"""The same scheduler in virtual time: workloads, predictors, runs, bounds, and their reports."""
