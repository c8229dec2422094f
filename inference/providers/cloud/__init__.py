"""Models of others, asked through LiteLLM over the network."""
