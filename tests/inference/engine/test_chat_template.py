"""Messages become the prompt the model was trained on."""

import json

import pytest

from inference.engine.chat_template import ChatTemplate, Turn
from inference.engine.errors import ChatTemplateError
from inference.engine.llama_runner import LlamaRunner
from inference.engine.tool_forms import Tool

SYSTEM: Turn = {"role": "system", "content": "Be brief."}
USER: Turn = {"role": "user", "content": "Hi <b>&'"}
ASSISTANT: Turn = {"role": "assistant", "content": "Hello."}

PLAIN = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}]{{ message['content'] }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + PLAIN
)


def test_template_gets_messages_and_special_tokens() -> None:
    template = ChatTemplate(PLAIN, bos_token="<s>", eos_token="</s>")
    assert template.render([SYSTEM, USER]) == (
        "<s>[system]Be brief.</s>[user]Hi <b>&'</s>[assistant]"
    )
    assert template.render([USER]) == "<s>[user]Hi <b>&'</s>[assistant]"


def test_refused_system_message_goes_into_the_first_user_message() -> None:
    text = ChatTemplate(NO_SYSTEM).render([SYSTEM, USER, ASSISTANT, USER])
    assert text == ("[user]Be brief.\n\nHi <b>&'[assistant]Hello.[user]Hi <b>&'[assistant]")


def test_other_refusals_are_told_in_the_templates_words() -> None:
    template = ChatTemplate("{{ raise_exception('Roles must alternate') }}")
    with pytest.raises(ChatTemplateError, match="Roles must alternate"):
        template.render([SYSTEM, USER])


def test_base_model_gets_the_contents_raw() -> None:
    assert ChatTemplate(None).render([USER]) == "Hi <b>&'"
    assert ChatTemplate(None).render([SYSTEM, USER]) == "Be brief.\n\nHi <b>&'"


def test_template_that_does_not_compile_is_refused() -> None:
    with pytest.raises(ChatTemplateError, match="does not compile"):
        ChatTemplate("{% for %}")


def test_tojson_is_plain_json() -> None:
    template = ChatTemplate("{{ messages | tojson }}")
    assert template.render([{"role": "user", "content": "<é>"}]) == (
        '[{"role": "user", "content": "<é>"}]'
    )


def test_loop_controls_generation_blocks_and_dates_work() -> None:
    template = ChatTemplate(
        "{% for message in messages %}{% generation %}{{ message.content }}{% endgeneration %}"
        "{% break %}{% endfor %}{{ strftime_now('%Y')[:2] }}"
    )
    assert template.render([USER, ASSISTANT]) == "Hi <b>&'20"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__.os }}",
        "{{ 1 // 0 }}",
        "{{ messages[99].content }}",
    ],
)
def test_template_cannot_leave_the_sandbox_or_crash(source: str) -> None:
    with pytest.raises(ChatTemplateError):
        ChatTemplate(source).render([USER])


def test_bos_of_template_and_tokenizer_is_one(runner: LlamaRunner) -> None:
    text = runner.chat_template.render([USER])
    bos = runner.tokenize("<|im_start|>")[0]
    tokens = runner.tokenize(text)
    assert text.startswith("<|im_start|>system")
    assert tokens[0] == bos
    assert tokens[1] != bos
    assert runner._without_doubled_ends([bos, bos, 5]) == [bos, 5]


ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}[{{ m.role }}]{{ m.content }}"
    "{% endfor %}"
)


def test_turns_of_one_role_are_joined_where_the_template_wants_it() -> None:
    first: Turn = {"role": "user", "content": "First."}
    second: Turn = {"role": "user", "content": "Second."}
    reply: Turn = {"role": "assistant", "content": "Yes."}
    template = ChatTemplate(ALTERNATING)
    assert template.render([first, second]) == "[user]First.\n\nSecond."
    assert template.render([SYSTEM, first, second, reply, reply, first]) == (
        "[user]Be brief.\n\nFirst.\n\nSecond.[assistant]Yes.\n\nYes.[user]First."
    )
    with pytest.raises(ChatTemplateError, match="Roles must alternate"):
        template.render([reply, first])


def test_turns_stay_apart_where_the_template_takes_them() -> None:
    template = ChatTemplate("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    assert template.render([USER, USER]) == "[Hi <b>&'][Hi <b>&']"


TOOL = Tool("find", {"type": "object", "properties": {}}, "Finds it.")
CALLED: Turn = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": name, "type": "function", "function": {"name": "find", "arguments": {"q": name}}}
        for name in ("call_1", "call_2")
    ],
}
RESULTS: list[Turn] = [
    {"role": "tool", "content": f"result {n}", "tool_call_id": f"call_{n}"} for n in (1, 2)
]
OWN_FORM = (
    "{{ tools | tojson }}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls %}<tool_call>{{ c.function.arguments | tojson }}{{ c.id | length }}"
    "{% endfor %}{{ m.tool_call_id | length if m.tool_call_id }}{% endfor %}"
)


def test_template_of_a_known_form_gets_tools_calls_and_results() -> None:
    text = ChatTemplate(OWN_FORM).render([USER, CALLED, *RESULTS], (TOOL,))
    described = json.loads(text[: text.index("[user]")])
    assert described[0]["function"]["name"] == "find"
    assert text[text.index("[assistant]") :] == (
        '[assistant]<tool_call>{"q": "call_1"}9<tool_call>{"q": "call_2"}9'
        "[tool]result 19[tool]result 29"
    )


def test_template_of_no_known_form_is_told_of_tools_in_words() -> None:
    text = ChatTemplate(PLAIN).render([SYSTEM, USER, CALLED, *RESULTS], (TOOL,))
    assert text.startswith("[system]Be brief.\n\nYou can call functions.")
    assert '"name": "find", "description": "Finds it."' in text
    assert text.endswith(
        '[assistant]<tool_call>{"name": "find", "arguments": {"q": "call_1"}}</tool_call>\n'
        '<tool_call>{"name": "find", "arguments": {"q": "call_2"}}</tool_call>'
        "[user]<tool_response>\nresult 1\n</tool_response>\n"
        "<tool_response>\nresult 2\n</tool_response>[assistant]"
    )
    assert ChatTemplate(PLAIN).render([USER], (TOOL,)).startswith("[system]You can call")
    assert ChatTemplate(NO_SYSTEM).render([USER], (TOOL,)).startswith("[user]You can call")


def test_calls_go_into_messages_of_their_own_where_the_template_takes_one_each() -> None:
    single = (
        "{% if messages | selectattr('tool_calls') | map(attribute='tool_calls') "
        "| map('length') | max > 1 %}{{ raise_exception('single') }}{% endif %}"
    )
    text = ChatTemplate(single + OWN_FORM).render([USER, CALLED, *RESULTS], (TOOL,))
    assert text[text.index("[assistant]") :] == (
        '[assistant]<tool_call>{"q": "call_1"}9[tool]result 19'
        '[assistant]<tool_call>{"q": "call_2"}9[tool]result 29'
    )
