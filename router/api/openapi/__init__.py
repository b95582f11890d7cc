"""What the HTTP API says of itself: the OpenAPI document at /openapi.json."""
