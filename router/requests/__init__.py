"""The life of a request: a checked request goes in, a stream that can be resumed comes out."""
