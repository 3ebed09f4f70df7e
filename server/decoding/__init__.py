"""From a request to ranked candidates."""
