"""Bodies of the OpenAI API: JSON goes in, checked requests come out; answers go in, JSON comes out."""
