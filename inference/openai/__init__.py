"""The routes of /v1: the same tasks, in the words of OpenAI's SDKs."""
