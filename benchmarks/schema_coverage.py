"""How many real schemas are accepted: `python benchmarks/schema_coverage.py FOLDER [--json FILE]`.

FOLDER holds packages that ship schemas: `uv pip install --no-deps --target FOLDER altair cfn-lint
check-jsonschema kubernetes-validate nbformat openapi-spec-validator validate-pyproject`. Of each
accepted schema, answers are written at random by its constraint and checked; a plain jsonschema
must agree about each that is completed. Ends with status 1 when it does not, or fewer than 85 %
are accepted.
"""

import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.figures import keep, options_parser, show
from inference.engine.byte_matcher import byte_matcher
from inference.engine.errors import SchemaError
from inference.engine.schema_policy import compile_schema
from inference.engine.sequence import FinishReason
from inference.errors import InferenceError
from inference.structured_output import ResponseFormat, parse

WANTED_SHARE = 0.85
NUM_ANSWERS = 3
MAX_ANSWER_BYTES = 3000
KEYWORDS = {"type", "properties", "$ref", "anyOf", "oneOf", "allOf", "enum", "items"}


def schemas_in(folder: Path) -> Iterator[tuple[str, Any]]:
    """Each schema once, with the package that ships it."""
    seen = set()
    for path in sorted(folder.rglob("*.json")):
        try:
            document = json.loads(path.read_bytes())
        except ValueError:
            continue
        found = [document]
        if path.name == "_definitions.json" and "$defs" in document:  # Kubernetes: many in one
            found = [bundled(document["$defs"], name) for name in document["$defs"]]
        for schema in found:
            is_schema = isinstance(schema, dict) and bool(schema.keys() & KEYWORDS)
            is_schema = is_schema and "_definitions.json" not in str(schema)
            if is_schema and (text := json.dumps(schema)) not in seen:
                seen.add(text)
                yield path.relative_to(folder).parts[0], schema


def bundled(definitions: dict[str, Any], name: str) -> dict[str, Any]:
    """One definition as a schema, with those that it refers to."""
    needed, waiting = {}, [name]
    while waiting:
        known = waiting.pop()
        if known not in needed:
            text = re.sub(
                r'"[^"#]*#/(\$defs|definitions)/', '"#/$defs/', json.dumps(definitions[known])
            )
            needed[known] = json.loads(text)
            waiting += re.findall(r'"#/\$defs/([^"]+)"', text)
    return {**needed[name], "$defs": needed}


def written_by(grammar: str, seed: int) -> str | None:
    """A text that the grammar allows, chosen byte by byte; None for one that does not end."""
    matcher, chosen = byte_matcher(grammar), random.Random(seed)  # noqa: S311
    written = bytearray()
    while len(written) < MAX_ANSWER_BYTES and not matcher.is_stopped():
        mask = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.flatnonzero(np.unpackbits(mask, count=256, bitorder="little"))
        if not len(allowed):
            break
        closing = [byte for byte in allowed if byte in b'"}]']
        byte = int(chosen.choice(closing if closing and chosen.random() < 0.5 else list(allowed)))
        if not matcher.consume_token(byte):
            return None
        written.append(byte)
    return written.decode() if matcher.is_accepting() else None


def unsound_answer(schema: Any, grammar: str, counts: Counter[str]) -> str | None:
    """A completed answer that the schema does not allow."""
    asked = ResponseFormat(type="json_schema", name="answer", schema=json.dumps(schema))
    judge = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)(schema)
    for seed in range(NUM_ANSWERS):
        text = written_by(grammar, seed)
        if text is None:
            counts["unfinished"] += 1
            continue
        try:
            value = parse(text, FinishReason.STOP, asked)
        except InferenceError:
            counts["caught at the end"] += 1
            continue
        counts["completed"] += 1
        try:
            if not judge.is_valid(value):
                return text
        except re.error:  # a pattern that is none of Python's
            counts["not judged"] += 1
    return None


def measure(folder: Path) -> tuple[dict[str, Any], list[str]]:
    by_package: dict[str, Counter[str]] = {}
    reasons: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    seconds, problems = [], []
    for package, schema in schemas_in(folder):
        counts = by_package.setdefault(package, Counter())
        started = time.perf_counter()
        try:
            grammar = compile_schema(schema)
        except (SchemaError, RecursionError) as error:
            counts["refused"] += 1
            reasons[str(error).partition(": ")[2][:60] or "nested too deep"] += 1
            continue
        finally:
            seconds.append(time.perf_counter() - started)
        counts["accepted"] += 1
        if (text := unsound_answer(schema, grammar, answers)) is not None:
            problems.append(f"{package}: {json.dumps(schema)[:200]} allows {text[:200]}")
    accepted = sum(counts["accepted"] for counts in by_package.values())
    times = np.array(seconds) * 1000
    figures = {
        "schemas": len(seconds),
        "accepted": accepted,
        "accepted share": round(accepted / len(seconds), 4),
        "ms": {f"p{p}": round(float(np.percentile(times, p)), 2) for p in (50, 90, 99, 100)},
        "packages": by_package,
        "refused": dict(reasons.most_common(25)),
        "answers": answers,
        "unsound": len(problems),
    }
    return figures, problems


def main() -> int:
    parser = options_parser(__doc__)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    figures, problems = measure(options.folder)
    show(figures)
    print("\n".join(problems))
    keep(figures, options.json)
    return 1 if problems or figures["accepted share"] < WANTED_SHARE else 0


if __name__ == "__main__":
    sys.exit(main())
