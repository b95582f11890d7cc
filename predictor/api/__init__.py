"""Where protobuf is known: the service, and what observations look like on the wire and on disk."""
