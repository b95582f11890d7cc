"""Tokens and text: prompts go in as text and leave as token ids, outputs the other way round."""
