"""Constrained answers with real weights: what the grammar allows; no other answer is touched."""

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher

from inference.engine.chat_template import Turn
from inference.engine.constraint import Constraint, ConstraintTokenizer
from inference.engine.errors import ConstraintError
from inference.engine.llama_runner import LlamaRunner
from inference.engine.matcher import MAX_ABANDONED, Vocabulary, call_within, find_problem
from inference.engine.sequence import FinishReason, SamplingParams, Sequence
from tests.inference.engine.replay import assert_same_but_for_ties, new_engine

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["customer of the shop", "member of the staff"]},
        "tags": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
    },
    "required": ["name", "kind", "tags"],
    "additionalProperties": False,
}
GREEDY = SamplingParams(temperature=0, max_tokens=24)
BYTES = Vocabulary([*(bytes([byte]) for byte in range(256)), b"<end>"], [256], [256], list)
CITY = 'start: "{\\"city\\": \\"" /[A-Z][a-zé]{1,9}/ "\\"}"'


def of_schema(schema: object) -> str:
    return LLMatcher.grammar_from_json_schema(
        json.dumps(schema), overrides={"whitespace_flexible": False}
    )


def prompt(runner: LlamaRunner, question: str) -> list[int]:
    messages: list[Turn] = [{"role": "user", "content": question}]
    return runner.tokenize(runner.chat_template.render(messages))


def run(runner: LlamaRunner, *params: SamplingParams) -> list[Sequence]:
    """Side by side, each after a question of its own."""
    engine = new_engine(runner)
    sequences = [
        engine.add_request(str(number), prompt(runner, f"Tell me about number {number}."), each)
        for number, each in enumerate(params)
    ]
    while engine.num_unfinished:
        engine.step()
    return sequences


def matches(pattern: str) -> Callable[[str], Any]:
    return re.compile(pattern).fullmatch


def fits(schema: dict[str, Any]) -> Callable[[str], Any]:
    def check(text: str) -> bool:
        jsonschema.validate(json.loads(text), schema)
        return True

    return check


CASES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "schema": (of_schema(PERSON), fits(PERSON)),
    "regex": (
        LLMatcher.grammar_from_regex("[ab]{3,9}\\.(é|日本|😀){2}"),
        matches("[ab]{3,9}\\.(é|日本|😀){2}"),
    ),
    "lark": (CITY, matches('{"city": "[A-Z][a-zé]{1,9}"}')),
    "forced": ('start: "The quick brown fox jumps over the lazy dog."', matches("The .* dog\\.")),
    "nested": ('start: "(" start ")" | /x{1,3}/', lambda text: text.count("(") == text.count(")")),
    "markup": (
        'start: "<|im_end|>" /[a-z]{1,5}/ "<bos><table>" /[a-z]{2}/',
        matches(r"<\|im_end\|>[a-z]{1,5}<bos><table>[a-z]{2}"),
    ),
    "empty": ('start: ""', matches("")),
}


@pytest.fixture(scope="module", params=["smollm2", "gemma"])
def model(request: pytest.FixtureRequest) -> Iterator[LlamaRunner]:
    if request.param == "smollm2":
        yield request.getfixturevalue("runner")
        return
    gemma = LlamaRunner(request.getfixturevalue("gemma_params"))
    yield gemma
    gemma.close()


@pytest.mark.parametrize("temperature", [0, 1, 2])
@pytest.mark.parametrize("case", CASES)
def test_complete_answers_are_what_the_grammar_allows(
    model: LlamaRunner, case: str, temperature: float
) -> None:
    grammar, is_allowed = CASES[case]
    plain = SamplingParams(temperature=temperature, seed=1, max_tokens=80, constraint=grammar)
    answers = run(
        model,
        replace(plain, constraint_may_explode=True),
        replace(plain, seed=2, repeat_penalty=1.3),
    )
    for answer in answers:
        assert answer.error is None
        if answer.finish_reason == FinishReason.STOP:
            assert is_allowed(answer.text), answer.text
        text = b"".join(map(model.token_to_bytes, answer.output_tokens))
        assert text.decode(errors="replace") == answer.text
        assert all(map(model.token_to_bytes, answer.output_tokens)), "a control token"
    if case != "nested":
        assert {answer.finish_reason for answer in answers} == {FinishReason.STOP}


def test_forced_tokens_are_the_canonical_ones_and_take_one_step(model: LlamaRunner) -> None:
    engine = new_engine(model)
    text = "The quick brown fox jumps over the lazy dog, and 3 others."
    params = SamplingParams(constraint=f'start: "{text}"', max_tokens=40)
    sequence = engine.add_request("r", model.tokenize("Go"), params)
    outputs = engine.step()
    assert [(output.text, output.finish_reason) for output in outputs] == [
        (text, FinishReason.STOP)
    ]
    assert sequence.output_tokens == model.tokenize(text)[-len(sequence.output_tokens) :]
    assert outputs[0].num_new_tokens == len(sequence.output_tokens)


def test_max_tokens_and_stop_end_amid_forced_tokens(runner: LlamaRunner) -> None:
    grammar = 'start: /[0-9]{2}/ " and then the quick brown fox jumps over the lazy dog"'
    cut, stopped = run(
        runner,
        SamplingParams(constraint=grammar, temperature=0, max_tokens=6),
        SamplingParams(constraint=grammar, temperature=0, stop=("n fo",)),
    )
    assert (len(cut.output_tokens), cut.finish_reason) == (6, FinishReason.LENGTH)
    assert re.fullmatch("[0-9]{2} and then the( quick)?( brown)?", cut.text)
    assert stopped.finish_reason == FinishReason.STOP
    assert re.fullmatch("[0-9]{2} and then the quick brow", stopped.text)


def test_free_answers_are_the_same_beside_constrained_ones(runner: LlamaRunner) -> None:
    constrained = SamplingParams(constraint=of_schema(PERSON), seed=1, max_tokens=60)
    (alone,) = run(runner, GREEDY)
    beside, *_ = run(runner, GREEDY, constrained, constrained, constrained)
    assert_same_but_for_ties(runner, alone, beside)


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ('start: s\ns: s s s | s s | "a"', "takes too long"),
        ("start: /a[^\\x00-\\u{10FFFF}]/", "No"),
        ('start: /[a-z]{3}/ <[2]> "cd"', "no answer may contain|it allows no token"),
    ],
)
@pytest.mark.parametrize("may_explode", [False, True])
def test_constraint_that_cannot_be_followed_ends_its_own_answer_alone(
    runner: LlamaRunner, grammar: str, reason: str, may_explode: bool
) -> None:
    stuck, free = run(
        runner,
        SamplingParams(
            constraint=grammar, constraint_may_explode=may_explode, max_tokens=200, seed=1
        ),
        SamplingParams(temperature=0, max_tokens=12),
    )
    assert stuck.finish_reason == FinishReason.ERROR
    assert isinstance(stuck.error, ConstraintError)
    assert re.search(reason, str(stuck.error))
    assert free.error is None


@pytest.mark.parametrize("grammar", ["start: 1 %", 'start: "a" <|no_such_token|>', "{}"])
def test_grammar_that_is_none_is_refused_in_words(runner: LlamaRunner, grammar: str) -> None:
    engine = new_engine(runner)
    with pytest.raises(ConstraintError, match="format"):
        engine.add_request("r", [1], SamplingParams(constraint=grammar))
    assert not engine.num_unfinished


def test_rules_in_a_long_chain_do_not_overflow_the_stack(runner: LlamaRunner) -> None:
    rules = "\n".join(f'r{number}: r{number + 1} "x"' for number in range(5000))
    grammar = f'start: r0\n{rules}\nr5000: "a"'
    assert find_problem(grammar) == ""
    engine = new_engine(runner)
    sequence = engine.add_request("r", [1], SamplingParams(constraint=grammar, max_tokens=20))
    while engine.num_unfinished:
        engine.step()
    assert sequence.text.startswith("axxx")


def test_panic_of_the_library_is_an_error_in_words() -> None:
    def tokenize(text: bytes) -> list[int]:
        if text == b"test":  # asked when the tokenizer is made
            return []
        raise RuntimeError("no tokens today")

    vocabulary = replace(BYTES, tokenize=tokenize)
    constraint = Constraint(ConstraintTokenizer(vocabulary), 'start: "abc"')
    with pytest.raises(ConstraintError, match="panic") as failure:
        constraint.accept_forced()
    assert len(str(failure.value)) < 500
    with pytest.raises(ConstraintError):
        constraint.allowed_tokens()


def test_single_token_that_takes_too_long_is_given_up() -> None:
    """Ten rules wait at each of 300 places, and the last byte completes all of them."""
    rules = "\n".join(
        f"x{number}: " + " | ".join(f'"a" x{other}' for other in range(10)) + " | /[b-d]/"
        for number in range(10)
    )
    constraint = Constraint(ConstraintTokenizer(BYTES), f"start: x0\n{rules}", may_explode=True)
    for _ in range(300):
        assert constraint.accept(ord("a"))
        assert constraint.accept_forced() == []
    with pytest.raises(ConstraintError, match="takes too long"):
        constraint.accept(ord("b"))


def test_few_calls_that_take_too_long_go_on_beside_each_other() -> None:
    reasons = set()
    for _ in range(MAX_ABANDONED + 1):
        with pytest.raises(ConstraintError) as failure:
            call_within(0.001, hashlib.pbkdf2_hmac, "sha256", b"", b"", 1_000_000)
        reasons.add(str(failure.value))
    assert any("try again later" in reason for reason in reasons)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with suppress(ConstraintError):
            assert call_within(10, int, "7") == 7
            return
    pytest.fail("Calls that have ended still count.")


def test_end_of_generation_is_allowed_where_the_text_is_complete(runner: LlamaRunner) -> None:
    engine = new_engine(runner)
    params = SamplingParams(temperature=0, constraint="start: /[a-z ]{4,}/", max_tokens=30)
    sequence = engine.add_request("r", prompt(runner, "Say the word yes."), params)
    while engine.num_unfinished:
        engine.step()
    assert re.fullmatch("[a-z ]{4,}", sequence.text)
