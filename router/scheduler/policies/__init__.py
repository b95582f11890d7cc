"""Routing policies: a request and views of instances go in, one of them, or waiting, comes out."""
