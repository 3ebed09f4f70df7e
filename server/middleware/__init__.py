"""What every request passes through; plain ASGI."""
