"""Request bodies: JSON in UTF-8, in which no name is there twice."""

import json
from collections import Counter
from typing import Any

from rest_framework.exceptions import ParseError
from rest_framework.parsers import JSONParser
from rest_framework.utils.json import strict_constant


class StrictJSONParser(JSONParser):
    """JSON itself lets a parser take any of several equal names, which a typo must not decide."""

    def parse(self, stream: Any, media_type: Any = None, parser_context: Any = None) -> Any:
        try:
            text = stream.read().decode()
            return json.loads(text, object_pairs_hook=object_of, parse_constant=strict_constant)
        except ValueError as error:
            raise ParseError(f"The body is no valid JSON: {error}.") from error


def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object, as a hook of `json.loads`. Raises ValueError for a name that is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{json.dumps(name[:100])} is there twice in an object")
    return found
