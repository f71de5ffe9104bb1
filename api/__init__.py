"""Entry points for ASGI servers."""
