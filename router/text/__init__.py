"""Tokens and text: tokenizer, incremental detokenizer, stop strings."""
