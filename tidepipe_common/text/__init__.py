"""The one reading of text and JSON from outside."""
