"""Batches: files of requests that a default worker submits, and whose answers it writes."""

import threading

# Set when the worker shuts down: the batches of this process become due again.
stopping = threading.Event()
