"""Vectors of texts: asked for by web processes, computed in batches by the embeddings worker."""
