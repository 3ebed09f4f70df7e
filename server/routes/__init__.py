"""The HTTP endpoints, one module for each kind of client."""
