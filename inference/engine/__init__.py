"""Continuous batching over llama.cpp: no Django, Celery or Redis in here.

Read in this order: `sequence`, `kv_cache`, `scheduler`, `runner`, `engine`, `llama_runner`.
"""

import os

# llama.cpp's threads meet hundreds of times a token. By default they wait for one another without
# a pause: a tenth faster where each has a core of its own, but where one has to share its core, all
# of them are a hundred times slower. OpenMP reads this when it is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "500")
