"""Anthropic's Messages, over the same tasks and streams."""
