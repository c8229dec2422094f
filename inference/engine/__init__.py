"""Continuous batching over llama.cpp: no Django, Celery or Redis in here.

Read in this order: `sequence`, `kv_cache`, `scheduler`, `runner`, `engine`, `llama_runner`.
"""
