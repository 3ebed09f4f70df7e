"""API keys, their roles and limits, and the files that only their owner may read."""
