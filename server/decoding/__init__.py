"""Decoding: from a conversation to candidates that are scored and ranked."""
