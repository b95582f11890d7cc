"""Codecs: protobuf messages go in, domain types come out, and the other way; used by api folders."""
