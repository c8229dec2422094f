"""JSON Schemas as constraints of llguidance, with policies on top.

docs/structured-output.md says which keywords are exact, narrowed, checked at the end or refused.
Reference: https://json-schema.org/draft/2020-12
"""

import json
from typing import Any

from llguidance import LLMatcher

from inference.engine.byte_matcher import LIMITS
from inference.engine.errors import SchemaError
from inference.engine.matcher import find_problem
from inference.engine.schema_policy.document import check_document, check_keywords
from inference.engine.schema_policy.endings import why_endless
from inference.engine.schema_policy.policies import Options, rewrite
from inference.engine.schema_policy.validator import find_mismatch

__all__ = ["Options", "compile_schema", "find_mismatch"]

_MAX_QUOTED = 300
# White space as Python writes JSON: models that choose it themselves need up to twice the tokens.
_WHITE_SPACE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# Not u: PostgreSQL stores no NUL, and each character is written as itself.
_ESCAPES = r"nrbtf\""
# The library gives up on some patterns together with a length.
_UNDECIDED = "Unable to determine if regex is empty"


def compile_schema(schema: Any, options: Options | None = None) -> str:
    """The text of a grammar of llguidance, of which every complete text is JSON.

    It fits the schema but for the keywords that are checked at the end. Raises SchemaError, whose
    message starts with a JSON pointer to what has to be corrected.
    """
    check_document(schema)
    check_keywords(schema)
    options = options or Options()
    grammar, problem = "", _UNDECIDED
    for has_lengths in (True, False):
        if _UNDECIDED in problem:
            grammar = _grammar_of(schema, options, has_lengths=has_lengths)
            problem = find_problem(grammar, LIMITS)
    if problem:
        raise SchemaError(_in_words(problem))
    return grammar


def _grammar_of(schema: Any, options: Options, *, has_lengths: bool) -> str:
    rewritten = rewrite(schema, options, has_lengths=has_lengths)
    if (reason := why_endless(rewritten)) is not None:
        raise SchemaError(reason)
    whole = {**rewritten.root, "$defs": rewritten.definitions}
    overrides: Any = {"json_allowed_escapes": _ESCAPES, "lenient": True}
    if options.bounded:
        overrides |= _WHITE_SPACE
    text = json.dumps(whole, ensure_ascii=False)
    return LLMatcher.grammar_from_json_schema(text, overrides=overrides)


def _in_words(problem: str) -> str:
    reason = " ".join(problem.split())[:_MAX_QUOTED]
    if "nsatisfiable" in problem:
        message = f"No value satisfies it ({reason})"
    elif "not disjoint" in problem:
        message = f"Two patternProperties must not match the same name ({reason})"
    else:
        message = f"It is not supported ({reason})"
    return f"#: {message}: correct or simplify it."
