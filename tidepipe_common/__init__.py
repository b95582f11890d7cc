"""Leaf package: domain types, errors, logging and RPC plumbing shared by every service."""
