"""The OpenAPI description: what checks the bodies goes in, /openapi.json comes out."""
