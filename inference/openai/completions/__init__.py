"""Chat completions, and the older completions of a raw prompt."""
