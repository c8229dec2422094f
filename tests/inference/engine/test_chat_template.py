"""Messages become the prompt the model was trained on."""

import pytest

from inference.engine.chat_template import ChatTemplate, Turn
from inference.engine.errors import ChatTemplateError
from inference.engine.llama_runner import LlamaRunner

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
