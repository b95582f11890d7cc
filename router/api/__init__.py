"""The doors of the router: gRPC, OpenAI HTTP, its description, and the dashboard."""
