"""Responses that are kept: to be asked for later, to go on from, and to be answered in the background."""
