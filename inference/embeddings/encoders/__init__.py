"""Encoders turn texts into vectors, a kind for each library; for the embeddings worker alone."""
