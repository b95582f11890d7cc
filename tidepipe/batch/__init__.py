"""Files of requests: lines of the OpenAI batch format go in, lines of answers come out, none twice."""
