"""Responses that are kept: bodies go in, answers come out, now or later; others go on from them."""
