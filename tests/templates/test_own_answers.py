"""`auto` under templates whose text is no continuation of the prompt that they serve: thoughts, calls, stop tokens."""

from __future__ import annotations

import json

import pytest

from llmtune.data.formats import to_conversation
from llmtune.errors import TemplateError
from llmtune.types import IGNORE_INDEX, Conversation, Message, ToolCall

from .own_families import SOURCES, family_template, own_template

SKY = {"type": "function", "function": {"name": "sky", "description": "Of a place.", "parameters": {"type": "object"}}}
PLACE = ToolCall("sky", {"place": "Bergen"})
OTHER = ToolCall("sky", {"place": "Oslo"})


def trained(template, conversation):
    """(the prompt, what is trained) of each answer, as text."""
    found = []
    for sample in template.encode_all(conversation):
        ids, labels = sample["input_ids"], sample["labels"]
        starts = [i for i in range(1, len(ids)) if labels[i] != IGNORE_INDEX and labels[i - 1] == IGNORE_INDEX]
        for start in starts:
            end = next((i for i in range(start, len(ids)) if labels[i] == IGNORE_INDEX), len(ids))
            found.append((ids[:start], template.tokenizer.decode(ids[start:end])))
    return found


def row(*answers: Message, system: str | None = None, tools=(SKY,), **kwargs) -> Conversation:
    """A question, then answers, each call followed by its results."""
    messages = [Message("user", "Rain?")]
    for answer in answers:
        messages.append(answer)
        messages += [Message("tool", f"rain {number}") for number, _ in enumerate(answer.tool_calls)]
    while messages[-1].role == "tool":
        messages.pop()
    first = () if system is None else (Message("system", system),)
    return Conversation((*first, *messages), tuple(tools), **kwargs)


def answer(content="", *calls, thought=None):
    return Message("assistant", content, True, tuple(calls), reasoning=thought)


# What is trained behind the served prompt, for a text, a call without a text and two calls at once.
TEXTS = {
    "nemo": ("Yes.</s>", '[TOOL_CALLS][{"name": "sky", "arguments": {"place": "Bergen"}, "id": "000000000"}]</s>'),
    "deepseek-v3": ("Yes.<eos>", '<calls><call>sky<sep>{"place": "Bergen"}</call></calls><eos>'),
    "nemotron": (
        "</think>Yes.<|im_end|>",
        "</think>\n<tool_call>\n<function=sky>\n<parameter=place>\nBergen\n</parameter>\n</function>\n"
        "</tool_call><|im_end|>",
    ),
    "command": (
        "<|START_RESPONSE|>Yes.<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
        '<|START_THINKING|><|END_THINKING|><|START_ACTION|>[{"tool_name": "sky", "parameters": {"place": "Bergen"}}]'
        "<|END_ACTION|><|END_OF_TURN_TOKEN|>",
    ),
    "glm": (
        "\n<think></think>\nYes.<|user|>",
        "\n<think></think>\n<tool_call>sky\n<arg_key>place</arg_key>\n<arg_value>Bergen</arg_value></tool_call>"
        "<|observation|>",
    ),
}


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("family", TEXTS)
def test_the_trained_text_follows_the_served_prompt(family, system):
    template = family_template(family)
    text, call = TEXTS[family]
    assert [told for _, told in trained(template, row(answer("Yes."), system=system))] == [text]
    assert [told for _, told in trained(template, row(answer("", PLACE), system=system))] == [call]
    found = trained(template, row(answer("", PLACE), answer("Yes."), system=system))
    assert found[0][1] == call
    assert found[1][1].endswith(text.removeprefix("</think>"))
    prompts = [row(system=system), row(answer("", PLACE), answer("Yes."), system=system)]
    assert [ids for ids, _ in found] == [template.encode_prompts([one])[0] for one in prompts]


@pytest.mark.parametrize("family", TEXTS)
def test_parallel_calls_and_texts_before_them(family):
    template = family_template(family)
    (only,) = trained(template, row(answer("", PLACE, OTHER), system="S"))
    assert only[1].count("sky") == 2
    assert "Bergen" in only[1]
    assert "Oslo" in only[1]
    spoken = row(answer("I look.", PLACE), system="S")
    if family == "nemo":  # writes calls or a text
        with pytest.raises(TemplateError, match=r"drops the content .*I look"):
            template.encode(spoken)
    else:
        assert "I look." in trained(template, spoken)[0][1]


@pytest.mark.parametrize("family", [*TEXTS, "phi"])
def test_an_empty_answer_ends_where_its_text_would(family):
    template = family_template(family)
    tools = () if family == "phi" else (SKY,)
    (empty,) = trained(template, row(answer(""), system="S", tools=tools))
    (full,) = trained(template, row(answer("Word"), system="S", tools=tools))
    assert empty[0] == full[0]
    assert empty[1].strip() == full[1].replace("\nWord", "").replace("Word", "").strip()


STOPS = {
    "nemo": ["</s>"],
    "deepseek-v3": ["<eos>"],
    "nemotron": ["<|im_end|>"],
    "command": ["<|END_OF_TURN_TOKEN|>"],
    "glm": ["<|endoftext|>", "<|user|>", "<|observation|>"],
    "phi": ["<|endoftext|>", "<|end|>"],
}


@pytest.mark.parametrize("family", STOPS)
def test_generation_stops_at_what_is_trained_last(family):
    template = family_template(family)
    assert template.tokenizer.convert_ids_to_tokens(template.stop_token_ids) == STOPS[family]
    tools = () if family == "phi" else (SKY,)
    for one in (answer("Yes."), *([] if family == "phi" else [answer("", PLACE)])):
        assert template.encode(row(one, tools=tools))["labels"][-1] in template.stop_token_ids


def test_added_tokens_without_the_special_flag_stop_nothing():
    """A closing tag that the tokenizer holds as one token stood where the stop was looked for."""
    source = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{% if m['role'] == 'assistant' %}<tool_call>{{ m['content'] }}</tool_call>"
        "{% else %}{{ m['content'] }}{% endif %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    template = own_template(source, "glm")
    (only,) = trained(template, row(answer("Yes."), tools=()))
    assert only[1] == "<tool_call>Yes.</tool_call><|im_end|>"


THOUGHT = "It falls in\n drops."


@pytest.mark.parametrize("spelling", ["reasoning", "inline"])
@pytest.mark.parametrize("calls", [(), (PLACE,)])
@pytest.mark.parametrize("family", ["nemotron", "glm", "deepseek-v3"])
def test_thoughts_are_read_back(family, calls, spelling):
    """What is trained, split as the family's parser of thoughts does, is the row's thought and content."""
    template = family_template(family)
    kwargs = {"template_kwargs": {"thinking": True}} if family == "deepseek-v3" else {}
    given = answer("Yes.", *calls, thought=THOUGHT)
    if spelling == "inline":
        given = answer(f"<think>\n{THOUGHT}\n</think>\n\nYes.", *calls)
    (only,) = trained(template, row(given, **kwargs))
    prompt = template.tokenizer.decode(only[0])
    thought, content = template.thought_marks.split(only[1], opened=template.thought_marks.is_open(prompt))
    assert thought == THOUGHT
    assert content.lstrip().startswith("Yes.")
    assert ("sky" in content) == bool(calls)


def test_a_thought_after_a_closed_prompt_is_a_named_problem():
    template = family_template("deepseek-v3")
    found = template.encode_rows([row(answer("Yes.", thought=THOUGHT)), row(answer("Yes."))])
    assert "thought" in found[0].problem
    assert "chat_template_kwargs" in found[0].problem
    assert found[1].problem is None
    for family in ("glm", "nemotron"):
        (closed,) = family_template(family).encode_rows(
            [row(answer("Yes.", thought=THOUGHT), template_kwargs={"enable_thinking": False})]
        )
        assert "thought" in closed.problem


@pytest.mark.parametrize("family", ["nemo", "command", "phi"])
def test_a_template_without_thoughts_says_so(family):
    tools = () if family == "phi" else (SKY,)
    (found,) = family_template(family).encode_rows([row(answer("Yes.", thought=THOUGHT), tools=tools)])
    assert "drops the thought" in found.problem
    assert found.samples == []


IGNORES_CALLS = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}" \
    "{% if add_generation_prompt %}assistant: {% endif %}"  # fmt: skip
CALLS_BEHIND_TEXT = (
    "{% for m in messages %}{{ m['role'] + ': ' }}{% if m['content'] %}{{ m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}{{ c['function']['name'] }}{{ c['function']['arguments'] | tojson }}"
    "{% endfor %}"
    "{% endif %}<|im_end|>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.parametrize("source", [IGNORES_CALLS, CALLS_BEHIND_TEXT])
def test_a_call_that_is_not_written_is_a_named_problem(source):
    (found,) = own_template(source).encode_rows([row(answer("", PLACE))])
    assert "drops the row's call of 'sky'" in found.problem


def test_arguments_that_a_template_joins_to_a_text():
    """As an object they cannot be joined, or come out as Python writes them."""
    joined = IGNORES_CALLS.replace(
        "{{ m['role'] + ': ' + m['content']",
        "{{ m['role'] + ': ' + (m['tool_calls'][0]['function']['name'] ~ m['tool_calls'][0]['function']['arguments']"
        " if m['tool_calls'] else m['content'])",
    )
    for arguments in ({"place": "Bergen"}, '{"place": "Bergen"}'):
        given = row(answer("", ToolCall("sky", arguments)))
        assert trained(own_template(joined), given)[0][1] == 'sky{"place": "Bergen"}<|im_end|>'
        assert '<sep>{"place": "Bergen"}</call>' in trained(family_template("deepseek-v3"), given)[0][1]


def test_no_tools_are_none():
    """Templates ask `tools is not none`: an empty list would write a head without tools."""
    assert "AVAILABLE_TOOLS" not in family_template("nemo").render(row(answer("Yes."), tools=()))
    assert "AVAILABLE_TOOLS" in family_template("nemo").render(row(answer("Yes.")))


def test_ids_and_names_reach_the_template():
    source = (
        "{% for m in messages %}{{ m['role'] }}{{ '(' ~ m['name'] ~ ')' if m['name'] }}"
        "{{ '[' ~ m['tool_call_id'] ~ ']' if m['tool_call_id'] }}: {{ m['content'] }}"
        "{% for c in m['tool_calls'] or [] %}{{ c['id'] ~ c['function']['name'] }}{% endfor %}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    given = Conversation(
        (
            Message("user", "Q", name="ann"),
            Message("assistant", "", True, (ToolCall("sky", {}, "call_b"), ToolCall("sky", {}, "call_a"))),
            Message("tool", "one", tool_call_id="call_a", name="sky"),
            Message("tool", "two", tool_call_id="call_b"),
            Message("assistant", "R", True),
        )
    )
    assert own_template(source).render(given) == (
        "user(ann): Q<|im_end|>assistant: call_bskycall_asky<|im_end|>tool(sky)[call_a]: one<|im_end|>"
        "tool[call_b]: two<|im_end|>assistant: R<|im_end|>"
    )
    # Mistral's insists on nine characters: they are counted, and each result keeps its call.
    text = family_template("nemo").render(given)
    assert '"id": "000000000"' in text
    assert text.index('{"content": one, "call_id": "000000001"}') < text.index(
        '{"content": two, "call_id": "000000000"}'
    )


KEYS = {"reasoning_content": "m.reasoning_content", "reasoning": "m['reasoning']", "thinking": "m.get('thinking')"}


@pytest.mark.parametrize("key", KEYS)
def test_the_key_that_a_template_reads_thoughts_from(key):
    source = IGNORES_CALLS.replace(
        "m['content']", f"(('<think>' ~ {KEYS[key]} ~ '</think>') if {KEYS[key]} else '') + m['content']"
    )
    (only,) = trained(own_template(source), row(answer("Yes.", thought="Hm."), tools=()))
    assert only[1] == "<think>Hm.</think>Yes.<|im_end|>"


def test_variables_of_the_template():
    template = family_template("nemotron", template_kwargs={"enable_thinking": False})
    given = row(answer("Yes."))
    assert template.render(given, generation=True).endswith("assistant\n<think></think>")
    own = row(answer("Yes."), template_kwargs={"enable_thinking": True})
    assert template.render(own, generation=True).endswith("assistant\n<think>\n")
    for key in ("chat_template", "tokenize", "messages", "add_generation_prompt"):
        with pytest.raises(TemplateError, match=key):
            template.encode(row(answer("Yes."), template_kwargs={key: "x"}))


@pytest.mark.parametrize("family", SOURCES)
def test_rows_of_the_usual_form_are_exact(family):
    """Two questions with a system prompt: each answer is trained behind the ids that are served for it."""
    template = family_template(family)
    given = to_conversation({"messages": [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1."}, {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "2."},
    ]})  # fmt: skip
    found = trained(template, given)
    prompts = [Conversation(given.messages[:end]) for end in (2, 4)]
    assert [ids for ids, _ in found] == template.encode_prompts(prompts)
    assert ["1." in found[0][1], "2." in found[1][1]] == [True, True]
    assert json.dumps([told for _, told in found]).count("<|im_end|>") in (0, 2)
