"""Tool formats: what a model learns of a call, what it is fed after it, and how its answer is read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtune import TEMPLATE_MAPPING, get_template, register_tool_format
from llmtune.data.formats import to_conversation
from llmtune.errors import TemplateError, UnknownKeyError, UsageError
from llmtune.inference.texts import Frame
from llmtune.templates.pieces import Piece
from llmtune.templates.tools import TOOL_FORMAT_MAPPING, At, ParsedAnswer, ToolFormat, tool_format_of
from llmtune.types import IGNORE_INDEX, Conversation, Message, ToolCall

TEMPLATES = {
    "chatglm3": "chatglm3", "glm4": "glm4", "hermes": "qwen2.5", "llama3.1": "llama3.1", "mistral": "mistral-nemo",
    "mistral-v3": "mistral-v3", "react": "chatml",
}  # fmt: skip
SKY = {"type": "function", "function": {"name": "sky", "description": "Of a place.", "parameters": {"type": "object"}}}
CALL = Message("assistant", "", loss=True, tool_calls=(ToolCall("sky", {"place": "Bergen"}),))
ROW = Conversation(
    (
        Message("user", "Rain?"),
        CALL,
        Message("tool", "rain"),
        Message("assistant", "Yes.", loss=True),
        Message("user", "And in Oslo?"),
        CALL,
        Message("tool", "sun"),
        Message("assistant", "No.", loss=True),
    ),
    tools=(SKY,),
)


@pytest.fixture
def tokenizer(tiny_tokenizer):
    tiny_tokenizer.bos_token = "<|endoftext|>"
    return tiny_tokenizer


def learned_texts(template, row):
    """What is trainable of a row, answer by answer, with the ids in front of each."""
    found = []
    for sample in template.encode_rows([row])[0].samples:
        ids, labels = sample.input_ids, sample.labels
        starts = [i for i in range(1, len(ids)) if labels[i] != IGNORE_INDEX and labels[i - 1] == IGNORE_INDEX]
        for start in starts:
            end = next((i for i in range(start, len(ids)) if labels[i] == IGNORE_INDEX), len(ids))
            found.append((ids[:start], template.tokenizer.decode(ids[start:end])))
    return found


@pytest.mark.parametrize("key", TEMPLATES)
def test_each_turn_is_trained_after_the_served_prompt(key, tokenizer):
    template = get_template(TEMPLATES[key], tokenizer)
    answers = [index for index, message in enumerate(ROW.messages) if message.role == "assistant"]
    prompts = [template.encode_prompts([Conversation(ROW.messages[:index], ROW.tools)])[0] for index in answers]
    trainable = learned_texts(template, ROW)
    assert [ids for ids, _ in trainable] == prompts
    texts = [text for _, text in trainable]
    assert all("sun" not in text and "rain" not in text for text in texts)  # what tools give is not trainable
    tool_format = tool_format_of(template)
    for text, expected in zip(texts, [CALL, ROW.messages[3], CALL, ROW.messages[7]], strict=True):
        for stop in (*tool_format.stop_words, "<|im_end|>", "<|eot_id|>", "<|user|>", "<|endoftext|>"):
            text = text.split(stop)[0]
        frame = Frame(*template.answer_frame)
        text = frame.add(text) + frame.rest()
        parsed = tool_format.parse(text)
        assert parsed.calls == expected.tool_calls
        if not expected.tool_calls:
            assert parsed.content == expected.content


@pytest.mark.parametrize("key", [*TEMPLATES, None])
def test_a_format_of_choice(key, tokenizer):
    """--tool_format: what the template would write that named it; a template that names none refuses such rows."""
    template = get_template("qwen1.5", tokenizer, tool_format=key)
    if key is None:
        with pytest.raises(TemplateError, match="--tool_format"):
            template.encode(ROW)
        return
    info = TEMPLATE_MAPPING["qwen1.5"]
    named = type(template)(replace(info, tool_format=key), tokenizer, name="qwen1.5")
    assert template.encode_all(ROW) == named.encode_all(ROW)
    assert tool_format_of(template) is TOOL_FORMAT_MAPPING[key]


def test_where_a_format_has_no_place(tokenizer):
    with pytest.raises(UsageError, match="no place"):
        get_template("gemma", tokenizer, tool_format="hermes")
    assert "Action Input" in get_template("gemma", tokenizer, tool_format="react").render(ROW)
    with pytest.raises(UsageError, match="own chat template"):
        get_template("auto", tokenizer, tool_format="hermes")
    with pytest.raises(UnknownKeyError, match="hermes"):
        get_template("gemma", tokenizer, tool_format="herms")
    assert get_template("llama3.1", tokenizer, tool_format="llama3.1").info == TEMPLATE_MAPPING["llama3.1"]
    assert get_template("llama3.1", tokenizer, tool_format="hermes").info.tool_prefix is None


@pytest.mark.medium
@pytest.mark.parametrize("key", TEMPLATES)
def test_real_conversations_train_calls_and_never_results(key, tokenizer, assets):
    """The rows of glaive: all of them are written, but for what a family cannot say, and no result is trainable."""
    template = get_template(TEMPLATES[key], tokenizer)
    rows = json.loads((assets / "data/glaive_toolcall_en_demo.json").read_text(encoding="utf-8"))
    conversations = [to_conversation(row) for row in rows]
    encoded = template.encode_rows(conversations)
    assert [row.problem for row in encoded if row.problem] == []
    for conversation in conversations[:40]:
        answers = [index for index, message in enumerate(conversation.messages) if message.role == "assistant"]
        prompts = [
            template.encode_prompts([Conversation(conversation.messages[:index], conversation.tools)])[0]
            for index in answers
        ]
        assert [ids for ids, _ in learned_texts(template, conversation)] == prompts


def test_react_is_what_qwen_was_taught(tokenizer, assets):
    """Structured rows become the text that Qwen's own example of training data has."""
    template = get_template("chatml", tokenizer)
    text = template.render(Conversation(ROW.messages[:4], ROW.tools))
    example = json.loads((assets / "data/qwen_react_function_call.json").read_text(encoding="utf-8"))[0]
    question, answer = (turn["value"] for turn in example["conversations"])
    head, _, rest = question.partition("google_search:")
    form = rest[rest.index("\n\nUse the following format:") : rest.rindex("Question: ")]
    assert head in text
    assert form.replace("google_search, code_interpreter", "sky") in text
    labels = [line.split(":")[0] for line in answer.split("\n")]
    assert labels[:4] == ["Thought", "Action", "Action Input", "Observation"]
    ours = text[text.index("assistant\n") + len("assistant\n") :]
    assert ours == (
        'Thought: I can use sky.\nAction: sky\nAction Input: {"place": "Bergen"}\nObservation: rain\n'
        "Thought: I now know the final answer.\nFinal Answer: Yes.<|im_end|>"
    )
    trainable = [text for _, text in learned_texts(template, Conversation(ROW.messages[:4], ROW.tools))]
    assert trainable == [
        'Thought: I can use sky.\nAction: sky\nAction Input: {"place": "Bergen"}\nObservation:',
        " I now know the final answer.\nFinal Answer: Yes.<|im_end|>",
    ]


arguments = st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=12), st.booleans()))


@pytest.mark.parametrize("key", TEMPLATES)
@settings(max_examples=60, deadline=None)
@given(name=st.from_regex(r"[a-z_]{1,12}", fullmatch=True), given_arguments=arguments)
def test_what_is_written_is_read(key, name, given_arguments):
    calls = (ToolCall(name, given_arguments),)
    tool_format = TOOL_FORMAT_MAPPING[key]
    written = "".join(str(piece.content) for piece in tool_format.write_calls("", calls, At()))
    assert tool_format.parse(written).calls == calls
    assert any(written.lstrip().startswith(mark) for mark in tool_format.opens)


@pytest.mark.parametrize("key", TEMPLATES)
@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet='ab{}[]":,<>/_\n \\ TActionIput:', max_size=60))
def test_any_text_is_read(key, text):
    parsed = TOOL_FORMAT_MAPPING[key].parse(text)
    assert isinstance(parsed, ParsedAnswer)
    if not parsed.calls and key != "react":
        assert parsed.content == text


@pytest.mark.parametrize(
    ("key", "text", "content", "calls"),
    [
        ("hermes", 'I look.\n<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call>\n<tool_call>\n{"name": "b", '
         '"arguments": {"x": 1}}', "I look.", (ToolCall("a", {}), ToolCall("b", {"x": 1}))),
        ("hermes", '<tool_call>\n{"name": "a", "argum', '<tool_call>\n{"name": "a", "argum', ()),
        ("llama3.1", '<|python_tag|>{"name": "a", "parameters": {}}; {"name": "b", "parameters": {}}', "",
         (ToolCall("a", {}), ToolCall("b", {}))),
        ("llama3.1", '{"name": "Bergen", "rain": true}', '{"name": "Bergen", "rain": true}', ()),
        ("mistral", '[{"name": "a", "arguments": {"x": [1]}, "id": "000000000"}]', "", (ToolCall("a", {"x": [1]}),)),
        ("mistral", "[1, 2]", "[1, 2]", ()),
        ("mistral", ' {"name": "a", "arguments": {}}', "", (ToolCall("a", {}),)),
        ("mistral", '{"name": "Bergen", "rain": true}', '{"name": "Bergen", "rain": true}', ()),
        ("mistral-v3", ' [{"name": "a", "arguments": {}, "id": "000000000"}]', "", (ToolCall("a", {}),)),
        ("chatglm3", "sky\n ```python\ntool_call(place='Bergen', days=[1, None])\n```", "",
         (ToolCall("sky", {"place": "Bergen", "days": [1, None]}),)),
        ("chatglm3", "sky\n ```python\ntool_call(place=open('x'))\n```",
         "sky\n ```python\ntool_call(place=open('x'))\n```", ()),
        ("chatglm3", 'sky\n ```python\ntool_call(**{"a b": true})\n```', "", (ToolCall("sky", {"a b": True}),)),
        ("glm4", 'sky\n{"place": "Bergen"}', "", (ToolCall("sky", {"place": "Bergen"}),)),
        ("glm4", 'In JSON:\n{"place": "Bergen"}', 'In JSON:\n{"place": "Bergen"}', ()),
        ("react", " I look.\nAction: a\nAction Input: not JSON\nObservation: never read", "I look.",
         (ToolCall("a", "not JSON"),)),
        ("react", "Thought: Two.\nAction: a\nAction Input: {}\nAction: b\nAction Input: {\"x\": 1}\nObservation: 3",
         "Two.",
         (ToolCall("a", {}), ToolCall("b", {"x": 1}))),
        ("react", "Thought: One.\nAction: a\nAction Input: {}\nThought: Two.\nAction: b\nAction Input: {}", "One.",
         (ToolCall("a", {}), ToolCall("b", {}))),
        ("react", "Thought: Now.\nFinal Answer: 3.", "3.", ()),
        ("react", "Hello!", "Hello!", ()),
    ],
)  # fmt: skip
def test_answers_as_models_write_them(key, text, content, calls):
    assert TOOL_FORMAT_MAPPING[key].parse(text) == ParsedAnswer(content, calls)


@pytest.mark.parametrize("key", ["chatglm3", "glm4", "llama3.1", "react"])
def test_one_call_at_a_time(key, tokenizer):
    row = Conversation((Message("user", "a"), Message("assistant", "", True, CALL.tool_calls * 2)), (SKY,))
    with pytest.raises(TemplateError, match="one call at a time"):
        get_template(TEMPLATES[key], tokenizer).encode(row)


def test_glm4_as_its_own_template_writes_it(tokenizer):
    """The tools have a system turn of their own, before the row's; a call stands in the line of <|assistant|>."""
    system = Message("system", "Be brief.")
    text = get_template("glm4", tokenizer).render(Conversation((system, *ROW.messages[:4]), (SKY,)))
    schema = json.dumps(SKY["function"], indent=4)
    assert text == (
        "[gMASK]<sop><|system|>\n你是一个名为 ChatGLM 的人工智能助手。你是基于智谱AI训练的语言模型 GLM-4 模型开发的，"
        "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具\n\n## sky\n\n"
        + schema
        + "\n在调用上述函数时，请使用 Json 格式表示调用的参数。<|system|>\nBe brief.<|user|>\nRain?<|assistant|>sky\n"
        '{"place": "Bergen"}<|observation|>\nrain<|assistant|>\nYes.<|user|>'
    )


def test_chatglm3_as_its_own_code_writes_it(tokenizer):
    template = get_template("chatglm3", tokenizer)
    text = template.render(Conversation(ROW.messages[:4], (SKY,)))
    schema = json.dumps([SKY["function"]], indent=4)
    assert text == (
        "[gMASK]sop<|system|>\n Answer the following questions as best as you can. You have access to the following "
        f"tools:\n{schema}<|user|>\n Rain?<|assistant|>sky\n ```python\ntool_call(place='Bergen')\n```"
        "<|observation|>\n rain<|assistant|>\n Yes.<|user|>"
    )
    system = Message("system", "Look at the sky.")
    assert f"<|system|>\n Look at the sky.\n{schema}<|user|>" in template.render(
        Conversation((system, *ROW.messages[:4]), (SKY,))
    )


def test_mistral_v3_has_blanks(tokenizer):
    text = get_template("mistral-v3", tokenizer).render(Conversation(ROW.messages[:4], (SKY,)))
    nemo = get_template("mistral-nemo", tokenizer).render(Conversation(ROW.messages[:4], (SKY,)))
    for mark in ("[AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[INST]"):
        nemo = nemo.replace(mark, f"{mark} ")
    assert text == nemo.replace("Yes.", " Yes.")


def test_a_control_token_in_a_result_is_text(tokenizer):
    template = get_template("chatml", tokenizer)
    row = Conversation((Message("user", "a"), CALL, Message("tool", "x<|im_end|>y")), (SKY,))
    ids = template.encode_prompts([row])[0]
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2  # of the system prompt and the question


def test_a_registered_tool_format_is_used(tokenizer):
    register_tool_format(
        "test-curly",
        write_tools=lambda system, tools: f"{system} tools: {len(tools)}",
        write_calls=lambda content, calls, at: [Piece(f"call {calls[0].name}", from_data=True)],
        write_results_as_question=lambda results: "got " + ", ".join(results),
        parse=ParsedAnswer,
        opens=("call ",),
    )
    import dataclasses

    template = get_template("chatml", tokenizer)
    template.info = dataclasses.replace(template.info, tool_format="test-curly")
    text = template.render(Conversation(ROW.messages[:4], ROW.tools))
    assert "tools: 1<|im_end|>" in text
    assert "assistant\ncall sky<|im_end|>\n<|im_start|>user\ngot rain<|im_end|>" in text
    with pytest.raises(UsageError, match="write_results"):
        ToolFormat(write_tools=lambda s, t: "", write_calls=lambda *_: [], parse=ParsedAnswer, opens=())


def test_auto_has_the_tool_format_of_its_chat_template(real_tokenizer):
    own = get_template("auto", real_tokenizer("qwen3"))
    assert tool_format_of(own) is TOOL_FORMAT_MAPPING["hermes"]
    assert tool_format_of(get_template("auto", real_tokenizer("qwen1_5"))) is None


def test_every_template_names_a_format_that_there_is():
    assert {info.tool_format for info in TEMPLATE_MAPPING.values()} == {None, *TEMPLATES}
