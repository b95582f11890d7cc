"""Batches: OpenAI batch files in and out, durable against Ctrl-C and kill -9."""
