"""Structured output: JSON Schemas as grammars, and the checks that go with them."""

from inference.engine.json_schema.compiler import compile_schema
from inference.engine.json_schema.formats import FORMATS
from inference.engine.json_schema.pattern import matches

# Any JSON object.
JSON_OBJECT_GRAMMAR = compile_schema({"type": "object"})

__all__ = ["FORMATS", "JSON_OBJECT_GRAMMAR", "compile_schema", "matches"]
