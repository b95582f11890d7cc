"""Responses that are kept: bodies go in, answers come out, now or when they are asked for; others go on from them."""
