"""Structured outputs: a schema or expression goes in, a grammar that was tried within limits comes out."""
