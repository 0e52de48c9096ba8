"""Rows in the shape of each dataset of the catalogue, and the conversations that they become."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llmtune.types import Conversation, Message, ToolCall

from .made import turns


@dataclass
class Case:
    """`filtered` counts what the dataset is defined without, `bad` names what is wrong with the other rows."""

    rows: list[Any]
    expected: list[Conversation]
    filtered: dict[str, int] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)


def alpaca_case() -> Case:
    return Case(
        [
            {"instruction": "Add.", "input": "1 and 2", "output": "3"},
            {"instruction": "Say hello.", "input": "", "output": "Hello."},
            {"instruction": "Say bye.", "input": None, "output": "Bye."},
            {"instruction": "Say nothing.", "input": "", "output": None},
        ],
        [turns("Add.\n1 and 2", "3"), turns("Say hello.", "Hello."), turns("Say bye.", "Bye.")],
        {"no output": 1},
    )


def list_case(column: str) -> Case:
    """Messages of role and content."""
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    asked = [{"role": "system", "content": "s"}, *messages, {"role": "user", "content": "q2"}]
    return Case(
        [{column: messages, "prompt_id": "7", "source": "x"}, {column: asked}],
        [turns("q", "a")],
        bad=["the conversation ends with a user message"],
    )


def from_value_case(column: str = "conversations") -> Case:
    good = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    with_system = [{"from": "system", "value": "s", "weight": None}, *good, *good]
    return Case(
        [{column: good}, {column: with_system}, {column: [*good, good[1]]}],
        [turns("q", "a"), turns("q", "a", "q", "a", system="s"), turns("q", "a\n\na")],
    )


PLUGINS = 'Tools:\n1. {"plugin_name": "weather", "x": 1}\n\n2. {"plugin_name": "news"}'
NAMES = 'Tools:\n1. {"name": "weather"}\n2. {"plugin_name": "news"}'
ONE = 'Tools:\n1. {"plugin_name": "weather"}\n2. {"plugin_name": "weather"}'
CALL = '<|startofthink|>```JSON\n{"api_name": "w"}\n```<|endofthink|>It\'s fine'


def agent_row(*contents: str, system: str | None = PLUGINS) -> dict[str, str]:
    """As in the original: the list is the repr of a Python list."""
    made = [] if system is None else [{"from": "system", "value": system}]
    made += [{"from": "assistant" if n % 2 else "user", "value": text} for n, text in enumerate(contents)]
    return {"conversations": repr(made)}


def agent_case(mini: bool) -> Case:
    good = [turns("q", CALL, system=PLUGINS), turns("q", "a", "q2", CALL, system=PLUGINS)]
    return Case(
        [
            agent_row("q", CALL),
            agent_row("q", "a", "q2", CALL),
            agent_row("q", "a", system=NAMES),
            agent_row("q", "a", system=ONE),
            agent_row("q", "a", system=None),
            {"conversations": repr([{"from": "system", "value": PLUGINS}])},
            agent_row("q", "a", "q2"),  # an even number of messages
            agent_row("q"),
            {"conversations": repr([{"from": "system", "value": PLUGINS}, {"from": "user", "value": "q"}] * 2)},
            {"conversations": "[{'from': 'user'"},
        ],
        good if mini else [*good, turns("q", "a", system=NAMES)],
        {"fewer than two plugins": 2 + mini, "no user message": 1},
        bad=[
            *["the conversation ends with a user message"] * 3,
            "text that is not JSON",
        ],
    )


def sharegpt_case() -> Case:
    """As in the original: the list is the repr of a Python list."""
    one, two = {"human": "it's", "assistant": "a\nb"}, {"human": "q2", "assistant": "a2"}
    return Case(
        [{"conversation": repr([one])}, {"conversation": repr([one, two])}, {"conversation": "[]"}],
        [turns("it's", "a\nb"), turns("it's", "a\nb", "q2", "a2")],
        bad=["is an empty list"],
    )


def medical_zh_case() -> Case:
    return Case(
        [
            {"instruction": "头痛怎么办？", "input": "", "output": "多休息。"},
            {"instruction": "q", "input": None, "output": None},
        ],
        [turns("头痛怎么办？", "多休息。")],
        bad=["no answer"],
    )


def prompt_answer_case() -> Case:
    return Case(
        [
            {"prompt": "文本：…\n分类：", "answer": "体育", "text": "…", "task_type": "cls"},
            {"prompt": "q", "answer": None},
        ],
        [turns("文本：…\n分类：", "体育")],
        bad=["no answer"],
    )


def function(name: str, **schema: Any) -> tuple[Any, ...]:
    """A tool as every client sends it; the datasets hold them bare."""
    return ({"type": "function", "function": {"name": name, **schema}},)


def toolcall_case() -> Case:
    conversation = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"from": "observation", "value": '{"y": 2}'},
        {"from": "gpt", "value": "a"},
    ]
    messages = (
        Message("user", "q"),
        Message("assistant", "", True, (ToolCall("f", {"x": 1}),)),
        Message("tool", '{"y": 2}'),
        Message("assistant", "a", True),
    )
    return Case([{"conversations": conversation, "tools": '[{"name": "f"}]'}], [Conversation(messages, function("f"))])


NLI = "Category: neutral, entailment, contradiction\nOutput: "
PAIR = f"Task: Natural Language Inference\nSentence1: 天黑了\nSentence2: 天没亮\n{NLI}"
JD = "Task: Sentiment Classification\nSentence: 很好\nCategory: negative, positive\nOutput: "
LAW = {
    "type": "宪法",
    "title": "总纲",
    "chapter1": "第一章",
    "chapter2": None,
    "chapter3": "第三节",
    "content": "第一条",
}
GLAIVE_SYSTEM = (
    "SYSTEM: You are a helpful assistant with access to the following functions. Use them if required -\n"
    '{\n    "name": "f",\n    "parameters": {}\n}\n\n{"name": "g"}\n\n'
)
GLAIVE_CHAT = """USER: It's what?


ASSISTANT: <functioncall> {"name": "f", "arguments": '{"x": "it's"}'} <|endoftext|>


FUNCTION RESPONSE: {"y": 2}


ASSISTANT: Two. <|endoftext|>


USER: USER: thanks


ASSISTANT: Bye. <|endoftext|>"""

CASES: dict[str, Case] = {
    **{key: alpaca_case() for key in (
        "alpaca-en", "multi-alpaca-all", "instinwild-en", "instinwild-zh", "cot-en", "cot-zh", "gpt4all-en", "code-en",
        "school-math-zh", "text2sql-en", "finance-en")},
    "alpaca-zh": Case(
        [
            {"instruction": "翻译", "input": "输入：你好", "output": "Hello"},
            {"instruction": "翻译", "input": "你好。输入：", "output": "Hello"},
            {"instruction": "讲个笑话", "input": "输入：", "output": "好"},
            {"instruction": "讲个笑话", "input": "", "output": None},
        ],
        [turns("翻译\n你好", "Hello"), turns("翻译\n你好。输入：", "Hello"), turns("讲个笑话", "好")],
        {"no output": 1},
    ),
    "firefly-all-zh": Case(
        [
            '{"kind": "NER", "input": "a}{b", "target": "x"}{"kind": "Jokes", "input": "q", "target": "y"}'
            '{"kind": "Cot", "input": "}{", "target": "\\"}{"}',
            {"kind": "BELLE", "input": "q", "target": "z"},
            {"kind": "BELLE", "input": "q", "target": None},
            {"input": "q", "target": "z"},
        ],
        [turns("a}{b", "x"), turns("}{", '"}{'), turns("q", "z")],
        {"a kind that is not among the 24": 1},
        bad=["column 'target' is missing or null", "column 'kind' is missing or null"],
    ),
    "instruct-en": Case(
        [{"prompt": "q", "completion": "a"}, {"prompt": None, "completion": "a"}, {"prompt": "q", "completion": None}],
        [turns("q", "a")],
        {"no prompt": 1},
        bad=["column 'completion' is missing or null"],
    ),
    "sharegpt-en": sharegpt_case(),
    "sharegpt-zh": sharegpt_case(),
    "sharegpt-gpt4": from_value_case(),
    "openhermes-2.5": from_value_case(),
    "ultrachat-200k": list_case("messages"),
    "tulu-3-sft": list_case("messages"),
    "numinamath-cot": list_case("messages"),
    "self-cognition": Case(
        [{"query": "你是？", "response": "我是{{NAME}}，由{{AUTHOR}}训练。", "tag": "zh"}],
        [turns("你是？", "我是{{NAME}}，由{{AUTHOR}}训练。")],
    ),
    "damo-agent-zh": agent_case(mini=False),
    "damo-agent-mini-zh": agent_case(mini=True),
    "glaive-function-calling-v2": Case(
        [
            {"system": GLAIVE_SYSTEM, "chat": GLAIVE_CHAT},
            {"system": "SYSTEM: You have no functions.", "chat": "USER: q\n\n\nASSISTANT: a <|endoftext|>\n\n\n"},
            {"system": "SYSTEM: s", "chat": "USER: q\nASSISTANT: <functioncall> {broken <|endoftext|>"},
        ],
        [
            Conversation(
                (
                    Message("user", "It's what?"),
                    Message("assistant", "", True, (ToolCall("f", {"x": "it's"}),)),
                    Message("tool", '{"y": 2}'),
                    Message("assistant", "Two.", True),
                    Message("user", "USER: thanks"),
                    Message("assistant", "Bye.", True),
                ),
                function("f", parameters={}) + function("g"),
            ),
            turns("q", "a", system="You have no functions."),
        ],
        bad=["a function call is not JSON: '{broken'"],
    ),
    "glaive-toolcall-en": toolcall_case(),
    "glaive-toolcall-zh": toolcall_case(),
    "code-python-zh": Case(
        [
            {"chat_rounds": repr([{"role": "human", "content": "写it's"}, {"role": "bot", "content": "```\n1\n```"}])},
            {"chat_rounds": repr([{"role": "human", "content": "q"}])},
        ],
        [turns("写it's", "```\n1\n```")],
        bad=["the conversation ends with a user message"],
    ),
    "leetcode-python-en": Case(
        [
            {"code_with_problem": "# Two Sum\nAdd.\n\n```python\nx\n```\n", "explanation_only": "It adds."},
            {"code_with_problem": "# No code", "explanation_only": "e"},
            {"code_with_problem": "```python\n1\n``` ```python\n2\n```", "explanation_only": "e"},
            {"code_with_problem": "p ```python\n1\n```", "explanation_only": None},
        ],
        [turns("Two Sum\nAdd.\n\n", "```python\nx\n```\n\nIt adds.")],
        {"not exactly one ```python block": 2},
        bad=["column 'explanation_only' is missing or null"],
    ),
    "sql-create-context-en": Case(
        [
            {"question": "How many?", "context": "CREATE TABLE t (x)", "answer": "SELECT COUNT(*) FROM t"},
            {"question": "How many?", "context": "", "answer": "SELECT 1"},
            {"question": "How many?", "context": "", "answer": None},
        ],
        [turns("How many?\nCREATE TABLE t (x)", "SELECT COUNT(*) FROM t"), turns("How many?", "SELECT 1")],
        {"no output": 1},
    ),
    "medical-en": Case(
        [
            {"instruction": "If you are a doctor, please answer.", "input": "My head aches.", "output": "Rest."},
            {"instruction": "i", "input": None, "output": "r"},
            {"instruction": "i", "input": "q", "output": None},
        ],
        [turns("My head aches.", "Rest.")],
        {"no input": 1, "no output": 1},
    ),
    "medical-zh": medical_zh_case(),
    "medical-mini-zh": medical_zh_case(),
    "lawyer-llama-zh": Case(
        [
            {"instruction": "q", "input": "", "output": "a", "history": "[]"},
            {"instruction": "q2", "output": "a2", "history": None},
            {"instruction": "q3", "output": "a3", "history": "[['q', 'a']]"},
            {"instruction": "q4", "output": "a4", "history": [["q", "a"]]},
            {"instruction": "q5", "output": None, "history": "[]"},
            {"instruction": "q6", "output": "a6", "history": "[['q'"},
        ],
        [turns("q", "a"), turns("q2", "a2")],
        {"has a history": 2},
        bad=["column 'output' is missing or null", "column 'history' is text that is not JSON"],
    ),
    "tigerbot-law-zh": Case(
        [LAW, {**LAW, "chapter1": None, "chapter3": None}, {**LAW, "content": None}],
        [
            Conversation((Message("assistant", "宪法\n总纲\n第一章第三节第一条", True),)),
            Conversation((Message("assistant", "宪法\n总纲\n第一条", True),)),
        ],
        bad=["column 'content' is missing or null"],
    ),
    "blossom-math-zh": Case(
        [
            {"input": "1+1=?", "output": "相加得2。", "answer": "2", "id": 1},
            {"query": "1+2=?", "output": "得3。", "answer": 3},
            {"input": "q", "output": "o", "answer": None},
        ],
        [turns("1+1=?", "相加得2。\n\nAnswer: 2"), turns("1+2=?", "得3。\n\nAnswer: 3")],
        bad=["column 'answer' is missing or null"],
    ),
    "advertise-gen-zh": Case(
        [{"content": "类型#裙*{x}", "summary": "好看"}, {"content": None, "summary": "好看"}],
        [turns("Task: Generating advertisements based on keywords.\nKeywords: 类型#裙*{x}\nAdvertisements: ", "好看")],
        bad=["column 'content' is missing or null"],
    ),
    "dureader-robust-zh": Case(
        [
            {"text1": "北京[SEP]首都是北京。", "text2": "首都是哪里"},
            {"text1": "首都是北京。", "text2": "q"},
            {"text1": "a[SEP]b[SEP]c", "text2": "q"},
        ],
        [turns("Task: Question Generation\nContext: 首都是北京。\nAnswer: 北京\nQuestion: ", "首都是哪里")],
        bad=["column 'text1' has 0 times [SEP]", "column 'text1' has 2 times [SEP]"],
    ),
    "cmnli-zh": Case(
        [
            {"sentence1": "天黑了", "sentence2": "天没亮", "label": label, "idx": 0}
            for label in (0, 1, "2", -1, "-1", None, 3, "x")
        ],
        [turns(PAIR, "neutral"), turns(PAIR, "entailment"), turns(PAIR, "contradiction")],
        {"no label": 3},
        bad=["the label 3 is none of 0 to 2", "the label 'x' is not a number"],
    ),
    "jd-zh": Case(
        [{"sentence": "很好", "label": label} for label in (0.0, "1.0", None, -1)] + [{"sentence": None, "label": 1}],
        [turns(JD, "negative"), turns(JD, "positive")],
        {"no label": 2},
        bad=["column 'sentence' is missing or null"],
    ),
    "poetry-zh": Case(
        [{"text1": "床前明月光，疑是地上霜。"}, {"text1": None}],
        [turns("写诗", "床前明月光，疑是地上霜。")],
        bad=["column 'text1' is missing or null"],
    ),
    "cls-fudan-news-zh": prompt_answer_case(),
    "ner-jave-zh": prompt_answer_case(),
    "coco-en": Case(
        [
            {"image": {"path": "/data/1.jpg", "bytes": None}, "caption": "A cat.&&A dog."},
            {"image": "2.jpg", "caption": "A tree"},
            {"image": None, "caption": "c"},
        ],
        [
            turns("<img>/data/1.jpg</img>please describe the image", "A cat.", images=("/data/1.jpg",)),
            turns("<img>2.jpg</img>please describe the image", "A tree", images=("2.jpg",)),
        ],
        bad=["an image is null"],
    ),
}  # fmt: skip


@dataclass
class PreferenceCase:
    """A row of preference data, and the comparison that it becomes."""

    row: dict[str, Any]
    prompt: list[str] = field(default_factory=lambda: ["q"])
    answers: tuple[str, ...] = ("good", "bad")
    label: bool | None = None
    margin: float | None = None


def said(*contents: str) -> list[dict[str, str]]:
    return [
        {"role": "assistant" if number % 2 else "user", "content": content} for number, content in enumerate(contents)
    ]


IMPLICIT = {"prompt": "q", "prompt_id": "7", "chosen": said("q", "good"), "rejected": said("q", "bad")}
PREFERENCES = {
    "hh-rlhf": PreferenceCase(
        {
            "chosen": "\n\nHuman: q\n\nAssistant: a\n\nHuman: q2\n\nAssistant: good",
            "rejected": "\n\nHuman: q\n\nAssistant: a\n\nHuman: q2\n\nAssistant: bad",
        },
        ["q", "a", "q2"],
    ),
    "ultrafeedback-binarized": PreferenceCase(
        IMPLICIT | {"messages": said("q", "good"), "score_chosen": 8.0, "score_rejected": 5.0}
    ),
    "helpsteer3": PreferenceCase(
        {"context": said("q"), "response1": "good", "response2": "bad", "overall_preference": -3, "domain": "x"},
        margin=3.0,
    ),
    "zhihu-rlhf-3k": PreferenceCase({"prompt": "q", "chosen": "good", "rejected": "bad"}),
    "medical-reward": PreferenceCase({"question": "q", "response_chosen": "good", "response_rejected": "bad"}),
    "kto-mix-14k": PreferenceCase(
        {"prompt": said("q"), "completion": said("", "good")[1:], "label": True}, answers=("good",), label=True
    ),
    "orpo-dpo-mix-40k": PreferenceCase(IMPLICIT | {"source": "x", "question": "q"}),
}
