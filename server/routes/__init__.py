"""The HTTP endpoints, one module per kind of client."""
