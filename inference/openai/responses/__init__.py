"""Responses: a task each, in the shape of OpenAI's newer API."""
