"""Twenty schemas as clients send them, by the name of what they describe."""

from typing import Any

_TEXT = {"type": "string", "maxLength": 30}

SCHEMAS: dict[str, dict[str, Any]] = {
    "person": {
        "type": "object",
        "properties": {"name": _TEXT, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "optional_fields": {
        "title": "Profile",
        "type": "object",
        "properties": {
            "nickname": {"anyOf": [_TEXT, {"type": "null"}], "default": None},
            "active": {"type": "boolean"},
            "score": {"type": "number", "minimum": 0, "maximum": 1},
            "level": {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 10},
        },
    },
    "sentiment": {
        "type": "object",
        "properties": {
            "label": {"enum": ["positive", "neutral", "negative"]},
            "confidence": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        },
        "required": ["label", "confidence"],
    },
    "shopping_list": {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {"item": _TEXT, "count": {"type": "integer", "minimum": 1}},
            "required": ["item"],
        },
        "minItems": 1,
        "maxItems": 3,
    },
    "nested_order": {
        "type": "object",
        "properties": {
            "customer": {
                "type": "object",
                "properties": {
                    "name": _TEXT,
                    "address": {
                        "type": "object",
                        "properties": {
                            "city": _TEXT,
                            "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
                        },
                        "required": ["city", "zip"],
                    },
                },
                "required": ["address"],
            },
            "paid": {"const": True},
        },
        "required": ["customer", "paid"],
    },
    "unicode": {
        "type": "object",
        "properties": {
            "größe": {"enum": ["klein", "groß", "日本語", 'mit "Zitat"', "a\\b\n"]},
            "emoji 😀": {"type": "string", "minLength": 1, "maxLength": 5},
            "/~slash": {"type": "null"},
        },
        "required": ["größe", "emoji 😀"],
    },
    "tree": {
        "type": "object",
        "properties": {
            "value": {"type": "integer", "minimum": -9, "maximum": 99},
            "children": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2},
        },
        "required": ["value"],
    },
    "expression": {
        "$defs": {
            "number": {"type": "integer", "minimum": 0, "maximum": 9},
            "sum": {
                "type": "object",
                "properties": {
                    "op": {"const": "+"},
                    "left": {"$ref": "#/$defs/operand"},
                    "right": {"$ref": "#/$defs/operand"},
                },
                "required": ["op", "left", "right"],
            },
            "operand": {"oneOf": [{"$ref": "#/$defs/number"}, {"$ref": "#/$defs/sum"}]},
        },
        "$ref": "#/$defs/sum",
    },
    "event": {
        "type": "object",
        "properties": {
            "id": {"type": "string", "format": "uuid"},
            "day": {"type": "string", "format": "date"},
            "start": {"type": "string", "format": "date-time"},
            "end": {"type": "string", "format": "time"},
        },
        "required": ["day"],
    },
    "contact": {
        "type": "object",
        "properties": {
            "email": {"type": "string", "format": "email"},
            "server": {"type": "string", "format": "ipv4"},
            "home_page": {"type": "string", "format": "uri"},
        },
        "required": ["email"],
    },
    "patterns": {
        "type": "object",
        "properties": {
            "slug": {"type": "string", "pattern": "^[a-z0-9]+(?:-[a-z0-9]+)*$"},
            "version": {"type": "string", "pattern": r"^v\d{1,2}\.\d{1,2}(\.\d{1,2})?$"},
            "flag": {"type": "string", "pattern": "^(yes|no)$"},
            "word": {"type": "string", "pattern": "^[A-Z][a-z]+$", "maxLength": 8},
        },
        "required": ["slug", "version", "flag"],
    },
    "coordinates": {
        "type": "array",
        "prefixItems": [
            {"type": "number", "minimum": -90, "maximum": 90},
            {"type": "number", "minimum": -180, "maximum": 180},
        ],
        "items": False,
        "minItems": 2,
    },
    "labels": {
        "type": "object",
        "additionalProperties": {"type": "integer", "minimum": 1, "maximum": 5},
        "minProperties": 1,
        "maxProperties": 3,
    },
    "known_and_other_fields": {
        "type": "object",
        "properties": {"kind": {"enum": ["cat", "dog"]}, "key": {"type": "boolean"}},
        "required": ["kind"],
        "additionalProperties": {"type": "integer", "maximum": 9, "minimum": 0},
    },
    "all_of": {
        "allOf": [
            {"type": "object", "properties": {"id": {"type": "integer", "minimum": 1}}},
            {"properties": {"id": {"type": "number", "maximum": 9}, "note": _TEXT}},
        ],
        "required": ["id"],
    },
    "nullable_types": {
        "type": "object",
        "properties": {
            "a": {"type": ["string", "null"], "maxLength": 4},
            "b": {"type": ["integer", "boolean"], "minimum": 5, "maximum": 15},
            "c": {"type": ["array", "null"], "items": {"type": "boolean"}, "maxItems": 2},
        },
        "required": ["a", "b", "c"],
    },
    "matrix": {
        "type": "array",
        "items": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 1},
            "minItems": 2,
            "maxItems": 2,
        },
        "minItems": 2,
        "maxItems": 2,
    },
    "choice_of_shapes": {
        "type": "object",
        "properties": {
            "shape": {
                "anyOf": [
                    {
                        "properties": {"kind": {"const": "circle"}, "radius": {"type": "number"}},
                        "required": ["kind", "radius"],
                    },
                    {
                        "properties": {"kind": {"const": "square"}, "side": {"type": "integer"}},
                        "required": ["kind", "side"],
                    },
                ],
            },
        },
        "required": ["shape"],
    },
    "price": {
        "type": "object",
        "properties": {
            "amount": {"type": "number", "minimum": 0.01, "maximum": 99.99},
            "currency": {"type": "string", "minLength": 3, "maxLength": 3, "pattern": "^[A-Z]+$"},
            "change": {"type": "number", "exclusiveMinimum": -1.5, "exclusiveMaximum": 1.5},
        },
        "required": ["amount", "currency"],
    },
    "one_word": {"enum": ["red", "green", "blue", None, 7, 2.5, False, ["red", "green"], {"a": 1}]},
}
