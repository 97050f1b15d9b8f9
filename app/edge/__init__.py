"""The HTTP edge: ASGI middleware and the routes that vLLM's own API does not have."""
