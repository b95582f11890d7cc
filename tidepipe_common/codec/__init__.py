"""Conversions between protobuf messages and domain types. Imported by edges only."""
