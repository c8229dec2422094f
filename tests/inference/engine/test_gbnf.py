"""Grammars are refused with a place and a reason, and llama.cpp takes those that pass."""

import pytest

from inference.engine.errors import GrammarError
from inference.engine.gbnf import check_grammar
from inference.engine.llama_runner import LlamaRunner
from inference.engine.sequence import SamplingParams

GOOD = [
    'root ::= "a"',
    'root ::= "a" | "b" # a comment\n',
    "root ::= [^a-z\\]\\x41\\u00e9] .\n\n",
    'root ::= (\n  "a" |\n  item+\n)? item{2} item{1,} item{0,3}\nitem ::= [0-9]* "\\n"',
    'root   ::=\n   expr\nexpr ::= "(" expr ")" | "x"',
    "root ::= ws* [a-]\nws ::= w\nw ::= [ \\t]*",
    'root ::= ""',
    'root ::= "a" |\n "b"\nother-Rule1 ::= root',
]
BAD = {
    "": "no rule",
    'start ::= "a"': "no rule",
    "root": "line 1, column 5: expected ::=",
    'root ::= "a': "line 1, column 10: .* is missing",
    'root ::= "a"\nx ::= [a': "line 2, column 7",
    'root ::= ("a"': r"\) is missing",
    'root ::= "a")': "expected the end",
    "root ::= nowhere": 'a rule "nowhere"',
    "root ::= *": "nothing to repeat",
    'root ::= "\\q"': "escape",
    'root ::= "a"{5,2}': "at least 5 times, but at most 2",
    'root ::= "a"{2001}': "more than 2000",
    'root ::= "a"{x}': "expected {times}",
    "root ::= [] ": "empty character class",
    'root ::= root "a"': "left recursion",
    'root ::= x root "a"\nx ::= y\ny ::= "b" | ""': "left recursion",
    'root ::= "\0"': "NUL",
    'root ::= "a" !<[5]>': "line 1, column 14: <tokens> are not supported",
    "root ::= " + "(" * 100 + '"a"' + ")" * 100: "deeper",
    'root ::= "' + "a" * 1000 + '"{2000}': "elements",
    'root ::= "' + "a" * 200_000 + '"': "longer",
}


@pytest.mark.parametrize("grammar", GOOD)
def test_good_grammar_passes_here_and_in_llama_cpp(runner: LlamaRunner, grammar: str) -> None:
    runner.free_sampler(runner.new_sampler(SamplingParams(grammar=grammar), [1]))


@pytest.mark.parametrize("grammar", BAD)
def test_bad_grammar_is_refused_with_the_reason(grammar: str) -> None:
    with pytest.raises(GrammarError, match=BAD[grammar]):
        check_grammar(grammar)
