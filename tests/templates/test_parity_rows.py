"""Registered templates and `auto` against the tokenizer's own chat template, on rows with calls, thoughts and gaps.

Each trainable answer stands behind the ids that serving feeds for it, and prompt and answer together are what the chat
template itself writes, up to its stop token.
"""

from __future__ import annotations

import itertools

import pytest

from llmtune.data.formats import to_conversation
from llmtune.errors import TemplateError
from llmtune.templates.lookup import get_template
from llmtune.templates.parity import upstream_ids
from llmtune.templates.template import single_answer, trainable_answers
from llmtune.types import IGNORE_INDEX, Conversation

from .own_families import SOURCES, family_template

TEMPLATES = {  # (template, tokenizer)
    ("qwen1.5", "qwen1_5"), ("qwen2.5", "qwen2_5"), ("qwen3", "qwen3"), ("qwen3-nothinking", "qwen3"),
    ("llama3", "llama3_1"), ("internlm2", "internlm2"),
    *(("auto", name) for name in ("qwen1_5", "qwen2_5", "qwen3", "llama3_1", "internlm2")),
}  # fmt: skip
WITH_TOOLS = {"qwen2_5", "qwen3"}
WITH_THOUGHTS = {"qwen3"}

BARE = {"name": "sky", "description": "Of a place. 天空", "parameters": {"type": "object", "properties": {}}}
WRAPPED = {"type": "function", "function": BARE}
ONE = {"function": {"name": "sky", "arguments": {"place": "Bergen", "days": [1, None]}}}
TEXT = {"function": {"name": "sky", "arguments": '{"place": "Oslo"}'}}
NAMED = {"id": "call_a1", "type": "function", "function": {"name": "sky", "arguments": {}}}


def user(content="Rain?"):
    return {"role": "user", "content": content}


def bot(content="Yes.", **keys):
    return {"role": "assistant", "content": content, **keys}


def tool(content="rain", **keys):
    return {"role": "tool", "content": content, **keys}


CALLS = {
    "a call": [user(), bot("", tool_calls=[ONE]), tool(), bot()],
    "a call with a text": [user(), bot("I look.", tool_calls=[ONE]), tool(), bot()],
    "a call at the end": [user(), bot("", tool_calls=[TEXT])],
    "parallel calls": [user(), bot("", tool_calls=[ONE, TEXT]), tool("rain"), tool("sun"), bot()],
    "a call whose id its result names": [user(), bot("", tool_calls=[NAMED]), tool(tool_call_id="call_a1"), bot()],
    "two rounds": [user(), bot("", tool_calls=[ONE]), tool(), bot(), user("And?"), bot("", tool_calls=[TEXT]), tool(),
                   bot("No.")],
    "a null for a text": [user(), bot(None, tool_calls=[ONE]), tool(), bot("")],
    "tools that are not called": [user(), bot()],
}  # fmt: skip
THOUGHTS = {
    "reasoning_content": [user(), bot(reasoning_content="Hm.\nSo.")],
    "reasoning": [user(), bot(reasoning="Hm.\nSo.")],
    "thinking": [user(), bot(thinking="Hm.\nSo.")],
    "inline": [user(), bot("<think>\nHm.\nSo.\n</think>\n\nYes.")],
    "without its opening": [user(), bot("Hm.\nSo.\n</think>\n\nYes.")],
    "an empty thought": [user(), bot(reasoning_content="")],
    "two turns": [user(), bot(reasoning_content="Hm."), user("And?"), bot("No.", reasoning_content="Ah.")],
    "an empty answer": [user(), bot("", reasoning_content="Hm.")],
}  # fmt: skip
PLAIN = {
    "empty contents": [user(""), bot(""), user(""), bot("")],
    "white space": [user(" a\n"), bot("\n\n b "), user("\t"), bot(" ")],
    "a system prompt": [{"role": "system", "content": ""}, user(), bot()],
}
SCHEMAS = {"bare": BARE, "wrapped": WRAPPED}
ROWS = [
    *(("plain", name, {"messages": turns}) for name, turns in PLAIN.items()),
    *(("tools", f"{name}, {kind}", {"messages": turns, "tools": [schema]})
      for (name, turns), (kind, schema) in itertools.product(CALLS.items(), SCHEMAS.items())),
    *(("thoughts", name, {"messages": turns}) for name, turns in THOUGHTS.items()),
]  # fmt: skip


def answers(template, conversation: Conversation) -> list[tuple[list[int], list[int]]]:
    """(ids before, ids of) each trainable answer."""
    found = []
    for sample in template.encode_all(conversation):
        ids, labels = sample["input_ids"], sample["labels"]
        starts = [i for i in range(1, len(ids)) if labels[i] != IGNORE_INDEX and labels[i - 1] == IGNORE_INDEX]
        for start in starts:
            end = next((i for i in range(start, len(ids)) if labels[i] == IGNORE_INDEX), len(ids))
            found.append((ids[:start], ids[start:end]))
    return found


@pytest.mark.parametrize(("name", "files"), sorted(TEMPLATES))
def test_each_kind_of_row_is_trained_after_the_served_prompt(name, files, real_tokenizer):
    tokenizer = real_tokenizer(files)
    template = get_template(name, tokenizer)
    options = {"enable_thinking": False} if template.info.answer_prefix else {}
    for kind, what, given in ROWS:
        row = to_conversation(given)
        refuses = (
            (kind == "tools" and files not in WITH_TOOLS and (name != "auto" or "not called" not in what))
            or (kind == "thoughts" and what != "an empty thought" and files not in WITH_THOUGHTS
                and "inline" not in what and "opening" not in what)
            or (kind == "thoughts" and what != "an empty thought" and name == "qwen3-nothinking")
        )  # fmt: skip
        if refuses:
            with pytest.raises(TemplateError, match=r"thought|drops the row's call|no tool format|refuses the row"):
                template.encode(row)
            continue
        found = answers(template, row)
        trainable = trainable_answers(row)
        assert len(found) == len(trainable), what
        for (before, trained), turn in zip(found, trainable, strict=True):
            upto = single_answer(row, turn)
            prompt = Conversation(upto.messages[:-1], row.tools)
            assert before == upstream_ids(tokenizer, prompt, add_generation_prompt=True, **options), what
            theirs = tokenizer.decode(upstream_ids(tokenizer, upto, **options)).removesuffix("\n")
            ours = tokenizer.decode(before + trained)
            assert ours == theirs, what


@pytest.mark.parametrize("family", SOURCES)
def test_bare_schemas_are_trained_as_clients_serve_them(family):
    template = family_template(family)
    rows = [
        to_conversation({"messages": CALLS["tools that are not called"], "tools": [one]}) for one in (BARE, WRAPPED)
    ]
    assert template.render(rows[0]) == template.render(rows[1])
