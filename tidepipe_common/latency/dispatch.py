"""The way of a result through the controller: the one time of a step that no device's cost model has."""

DISPATCH_S = 0.0015
"""From a step's end at the last stage to the next plan at the first one: a report, a decision, a plan.

Measured between processes on two cores: 1.0 ms undisturbed, 1.5 to 1.9 in the median where two instances,
their router and the client share these cores. Devices do not change it, so it is one number for all.
"""
