"""What is in front of HTTP: connections go in, requests within limits and deadlines come out."""
