"""Files and batches of the HTTP API: lines of requests go in, stored answers come out."""
