"""What turns texts into vectors, by where the weights are; for the embeddings worker alone."""
