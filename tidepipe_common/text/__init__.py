"""The one reading of text from outside: bytes go in, text and JSON that are sound come out."""
