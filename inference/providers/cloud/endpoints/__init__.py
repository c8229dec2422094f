"""Where a model is asked: its endpoints, how many calls each takes, and which one gets the next."""
