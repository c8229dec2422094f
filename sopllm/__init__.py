"""The composition root: settings, URLs, the ASGI application and the processes of `make run`."""

__version__ = "0.1.0"
