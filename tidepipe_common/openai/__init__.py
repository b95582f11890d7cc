"""Bodies of the OpenAI API: requests, responses, streams, batch lines. No I/O, no clock, no protobuf."""
