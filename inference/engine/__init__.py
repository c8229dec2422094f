"""Continuous batching over llama.cpp: no Django, Celery or Redis in here.

Read in this order: `sequence`, `kv_cache`, `scheduler`, `runner`, `engine`, `llama_runner`.
"""

import os

# llama.cpp's threads meet hundreds of times a token. By default they wait for one another without
# a pause, and where one has to share its core, all are a hundred times slower. Threads that sleep
# at once make a step a sixth longer where each has a core of its own; after so many turns, 0.1 ms,
# they do not. OpenMP reads this when it is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
