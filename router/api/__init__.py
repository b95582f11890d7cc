"""The surfaces of the router, gRPC, HTTP, OpenAPI and dashboard: requests go in, answers come out."""
