"""What quality costs: fixed N, adaptive N, early rejection and controlled decoding, measured on a running server."""
