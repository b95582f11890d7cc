"""The live page: status and timelines of instances go in, an event stream for browsers comes out."""
