"""Grammars are refused with a place and a reason; the others mean what they mean to llama.cpp."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference.engine.engine import Engine
from inference.engine.errors import GrammarError
from inference.engine.gbnf import compile_grammar
from inference.engine.llama_runner import LlamaRunner
from inference.engine.matcher import check_grammar
from inference.engine.sequence import FinishReason, SamplingParams
from tests.inference.engine.byte_constraint import accepts, may_begin
from tests.inference.engine.grammar_acceptor import GrammarAcceptor

BAD = {
    "": "no rule",
    'start ::= "a"': "no rule",
    "root": "line 1, column 5: expected ::=",
    "::= root": "line 1, column 1: expected the name of a rule",
    'root ::= "a': "line 1, column 10: .* is missing",
    'root ::= "a"\nx ::= [a': "line 2, column 7: ] is missing",
    'root ::= ("a"': r"column 10: \) is missing",
    'root ::= ("a"\nx ::= "b"': r"line 1, column 10: \) is missing",
    'root ::= "a")': "column 13: expected the end of the rule",
    'root ::= "a" x ::= "b"': "column 14: expected the end of the rule",
    "root ::= nowhere": 'a rule "nowhere"',
    "root ::= *": "nothing to repeat",
    'root ::= "\\q"': "column 11: .* escape",
    'root ::= [a\\d"]': "column 12: .* escape",
    'root ::= "a" & "b"': "column 14: expected a rule name, literal",
    'root ::= "a"{5,2}': "at least 5 times, but at most 2",
    'root ::= "a"{2001}': "more than 2000",
    'root ::= "a"{x}': "expected {times}",
    "root ::= [] ": "empty character class",
    "root ::= [z-a]": "no character is in this class",
    "root ::= [\\x00]": "no character is in this class",
    'root ::= "\\x00"': "no text has the character",
    'root ::= "\\ud800"': r"column 10: no text has the character '\\\\ud800'",
    'root ::= "\ud800"': "no text has the character",
    'root ::= "a" "\\U00110000"': "column 14: no text has the character",
    'root ::= "a" !<[5]>': "line 1, column 14: <tokens> are not supported",
    'root ::= "a" root': "ever ends",
    "root ::= x\nx ::= y\ny ::= x": "ever ends",
    "root ::= " + "(" * 2000 + '"a"' + ")" * 2000: "lead from one to the next",
    'root ::= "a"' + "*" * 2000: "lead from one to the next",
    'root ::= "' + "a" * 41_000 + '"': "more than 40000 characters",
    'root ::= "' + "a" * 200_000 + '"': "longer",
}
SAMPLES = {
    "json": (
        r"""
        root ::= space (object | array)
        value ::= (object | array | string | number | "true" | "false" | "null") space
        object ::= "{" space (member ("," space member)*)? "}"
        member ::= string space ":" space value
        array ::= "[" space (value ("," space value)*)? "]"
        string ::= "\"" (
          [^"\\\x00-\x1F\x7f] |  # as it is
          "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4})
        )* "\""
        number ::= "-"? ("0" | [1-9] [0-9]{0,14}) ("." [0-9]{1,9})? ([eE] [-+]? [0-9]{1,3})?
        space ::= | " " | "\n" [ \t]{0,8}
        """,
        ['{"a": [1, -0.5e+3, true],\n\t"é\\u00e9\\n": {"日": null}}', "[]", '{"":""}'],
    ),
    "arithmetic": (
        r"""
        root ::= (sum "=" space number "\n")+
        sum ::= product ([-+] space product)*
        product ::= term ([*/] space term)*
        term ::= name | number | "(" space sum ")" space
        name ::= [a-z] [a-z0-9]{0,7} space
        number ::= [0-9]+ space
        space ::= [ \t]*
        """,
        ["x1 + 2*(y - 3) = 4\n", "1=1\na=2 \n", "((a))/b=0\n"],
    ),
    "program": (
        r"""
        root ::= function*
        function ::= type name "(" (type name ("," type name)*)? ")" block
        block ::= "{" space statement* "}" space
        statement ::= "if" space "(" sum ")" block ("else" space block)? |
          "return" space sum? ";" space | name "=" space sum ";" space | comment
        sum ::= term ([-+<>] space term)*
        term ::= name | [0-9]+ space | name "(" (sum ("," sum)*)? ")" space | "(" sum ")" space
        comment ::= "//" [^\n]* "\n" | "/*" ([^*] | "*"+ [^*/])* "*"+ "/"
        type ::= ("int" | "float") [ ]+
        name ::= [a-zA-Z] [a-zA-Z0-9]* space
        space ::= [ \n]*
        """,
        [
            "int f(int a,float b){ if (a < 1){return 1;} else { x = f(a-1,2); } return(a); }",
            "int iffy(){/* a ** b */// c\nreturnx = 1;}",
            "",
        ],
    ),
    "chess": (
        r"""
        root ::= ([1-9] [0-9]? ". " move " " move "\n")+
        move ::= (pawn | piece | "O-O" "-O"?) [+#]?
        piece ::= [NBKQR] [a-h]? [1-8]? "x"? [a-h] [1-8]
        pawn ::= ([a-h] "x")? [a-h] [1-8] ("=" [NBKQR])?
        """,
        ["1. e4 e5\n2. Nf3 Nbd7+\n", "1. O-O-O exd8=Q#\n"],
    ),
    "list": (
        'root ::= item+\nitem ::= "- " [^\\r\\n\\x0b\\x85\\u2028]+ "\\n"',
        ["- an apple, a pear\n- 日本語 😀\n"],
    ),
    "japanese": (
        "root ::= word+ ([ \\n] word+)*\nword ::= [ぁ-ゟ] | [ァ-ヿ] | [\\u3001-\\u303e] | [一-鿿]",
        ["日本語の文章、テスト です", "ア"],
    ),
    "prose": (
        """
        root ::= sentence (" " sentence){0,4}
        sentence ::= [A-Z] [a-z ]{0,40} mark
        mark ::= [!?.] | [.] [.] [.]
        """,
        ["Hello world. And more... Yes!"],
    ),
    "keywords": (
        'root ::= ("let" | "letter" | [a-z]{1,6} | "le" .) (";" root)?',
        ["let;letter;lex;le\n", "le😀;abcdef"],
    ),
    "dashes": (
        'root ::= [a-] [-a] [\\-a] [a\\-c] [+--] [^a-c-] [\\]\\[^"] "\\"\\\\[]\\t"',
        ['a-a-,d]"\\[]\t', '--ac+\n^"\\[]\t'],
    ),
    "repetition": (
        'root ::= "ab"{2} ("c" | "de"+){1,2}? [x-z]{2,} ("" | "!"){3} .{0,2}',
        ["ababcdexyz!!", "ababxx!!!é😀", "ababcczz"],
    ),
    "escapes": (
        'root ::= "\\x41\\u00e9\\U0001F600\\n\\r\\t" [\\u0430-\\u044f\\x30-9]* "é日"',
        ["Aé😀\n\r\tжю07é日"],
    ),
}
LETTERS = st.sampled_from(' \n\t"\\{}[](),;:=+-*/.<!?0123456789abceflmnrtuxzANOQé日ж😀')


@st.composite
def _nearly_good(draw: st.DrawFn) -> tuple[str, str]:
    """A sample's grammar, and a text of it, most often with a few changes."""
    grammar, texts = SAMPLES[draw(st.sampled_from(list(SAMPLES)))]
    text = draw(st.sampled_from(texts))
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(text)))
        end = start + draw(st.integers(0, 2))
        text = text[:start] + draw(st.text(LETTERS, max_size=2)) + text[end:]
    return grammar, text


@pytest.mark.parametrize("grammar", BAD)
def test_bad_grammar_is_refused_with_the_reason(grammar: str) -> None:
    with pytest.raises(GrammarError, match=BAD[grammar]):
        compile_grammar(grammar)


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_have_their_texts(acceptor: GrammarAcceptor, name: str) -> None:
    grammar, texts = SAMPLES[name]
    for text in texts:
        assert accepts(compile_grammar(grammar), text), text
        assert acceptor.accepts(grammar, text), text


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(case=_nearly_good())
def test_grammar_means_the_same_to_llama_cpp(
    acceptor: GrammarAcceptor, case: tuple[str, str]
) -> None:
    grammar, text = case
    compiled = compile_grammar(grammar)
    assert accepts(compiled, text) == acceptor.accepts(grammar, text)
    assert may_begin(compiled, text) == acceptor.may_begin(grammar, text)


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        ('root ::= root "-" root | [0-9]', "1-2-3"),
        ('root ::= names\nnames ::= my_name | names "," my_name\nmy_name ::= [a-z]+', "ab,c"),
        ('root ::= ("a"*)* ""*', "aaa"),
        ('root ::= ("(" root ")")?', "(((())))"),
        ("root ::= " + " | ".join(f'"name {number}"' for number in range(3000)), "name 1234"),
        (
            "root ::= "
            + " | ".join(f'"{number * "a"}" x*' for number in range(120))
            + '\nx ::= "x"',
            "aa",
        ),
    ],
)
def test_more_than_llama_cpp_takes(grammar: str, text: str) -> None:
    compiled = compile_grammar(grammar)
    assert accepts(compiled, text)
    assert not accepts(compiled, text + "!")


def test_deepest_grammar_fits_on_the_stack() -> None:
    rule = 'x{0} ::= "a" x{0} | "b" x{0} | "c" x{0} | "d" | "e" | "f" x{1} "g"\n'
    rules = "".join(rule.format(number, number + 1) for number in range(1000))
    gbnf = f"root ::= x0\n{rules}x1000 ::= {'(' * 998}'z'{')' * 998}".replace("'", '"')
    check_grammar(compile_grammar(gbnf))
    with pytest.raises(GrammarError, match="lead from one to the next"):
        compile_grammar(gbnf.replace('"z"', '("z")'))


def test_a_branch_that_never_ends_is_not_taken() -> None:
    compiled = compile_grammar('root ::= "a" | "b" x | "c" x?\nx ::= "d" x')
    assert accepts(compiled, "a")
    assert accepts(compiled, "c")
    assert not may_begin(compiled, "b")
    assert not may_begin(compiled, "cd")


def test_many_readings_of_a_text_take_no_time_of_their_number() -> None:
    """llama.cpp would hold 2^500 stacks."""
    nested = compile_grammar('root ::= "a" root "b" | "a" root "c" | "a"')
    assert accepts(nested, "a" * 501 + "bc" * 250)
    assert not accepts(nested, "a" * 501 + "bc" * 249)
    tangled = compile_grammar(
        'root ::= x\nx ::= "a" y | "a" z | ""\ny ::= "a" x x | "b"\nz ::= "a" x x | "c"'
    )
    assert accepts(tangled, "a" * 60)
    assert not accepts(tangled, "a" * 61)


def test_long_right_recursion_is_a_loop() -> None:
    compiled = compile_grammar('root ::= word | word " " root\nword ::= [a-z] word | [a-z]')
    assert accepts(compiled, "word " * 2000 + "w" * 5000)


@pytest.mark.parametrize(
    "grammar", ['root ::= "ab<" [a-z]+ ">cd"', 'root ::= "<|im_end|>" [a-z]{3} "<|im_start|>"']
)
def test_control_tokens_stand_for_no_text(runner: LlamaRunner, grammar: str) -> None:
    engine = Engine(runner)
    params = SamplingParams(
        temperature=1, seed=1, max_tokens=100, constraint=compile_grammar(grammar)
    )
    answer = engine.add_request("answer", runner.tokenize("Write: "), params)
    while engine.num_unfinished:
        engine.step()
    assert accepts(compile_grammar(grammar), answer.text) == (
        answer.finish_reason == FinishReason.STOP
    )
    assert all(map(runner.token_to_bytes, answer.output_tokens))
