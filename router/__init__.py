"""The router: requests of clients go in, sequences for instances and streams of answers come out."""
