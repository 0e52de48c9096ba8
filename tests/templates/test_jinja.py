"""A template as Jinja gives the very text that `render` gives."""

from __future__ import annotations

import itertools

import pytest
from jinja2.exceptions import TemplateError as JinjaError

from llmtune.errors import TemplateError
from llmtune.models.tiny import tiny_folder
from llmtune.templates.chat import ChatTemplate
from llmtune.templates.info import TEMPLATE_MAPPING, TemplateInfo
from llmtune.templates.jinja import to_jinja
from llmtune.templates.lookup import get_template

QUESTIONS = [" {{SYSTEM}} {{ messages }}{% if %}\n", "你好 🦜 \"quoted\" 'x' \\n {# note #}", "", "\n<|im_end|>\n"]
ANSWERS = ["\nfirst {{QUERY}} ", "{{- 1 / 0 -}}", "third\n\n", ""]
SYSTEMS = [None, "", " Be {{QUERY}} brief.\n"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    from transformers import AutoTokenizer

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        loaded = AutoTokenizer.from_pretrained(tiny_folder())
    loaded.bos_token = "<|im_start|>"
    return loaded


@pytest.fixture(scope="module")
def tokenizer_with_large_ids():
    """ChatGLM2's control tokens have ids that the embedded tokenizer does not reach."""
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 2, "[gMASK]": 64790, "sop": 64792}, "<unk>"))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(text, special=True) for text in ("</s>", "[gMASK]", "sop")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def conversation(num_turns: int, system: str | None, *, last_answer: bool = True) -> list[dict[str, str]]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    for question, answer in zip(QUESTIONS[:num_turns], ANSWERS, strict=False):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages if last_answer else messages[:-1]


def assert_same(template: ChatTemplate, messages: list[dict[str, str]], *, default_system: str | None = None):
    jinja = to_jinja(template.info, template.tokenizer, system=default_system)
    generation = messages[-1]["role"] == "user"
    found = template.tokenizer.apply_chat_template(
        messages, chat_template=jinja, tokenize=False, add_generation_prompt=generation
    )
    assert found == template.render({"messages": messages}, generation=generation)


WRITABLE = [key for key, info in TEMPLATE_MAPPING.items() if info.format_answer is None and not info.from_tokenizer]


@pytest.mark.parametrize("key", WRITABLE)
def test_jinja_equals_render(key, tokenizer, tokenizer_with_large_ids):
    info = TEMPLATE_MAPPING[key]
    bound = get_template(key, tokenizer_with_large_ids if key.startswith("chatglm") else tokenizer)
    counts = (1,) if info.chat_sep is None else (1, 2, 3)
    systems = SYSTEMS if info.has_system_slot else [None]
    for num_turns, system, last_answer in itertools.product(counts, systems, (True, False)):
        assert_same(bound, conversation(num_turns, system, last_answer=last_answer))
    assert_same(bound, [{"role": "assistant", "content": " plain text\n"}])


def test_most_templates_can_be_written():
    assert len(WRITABLE) >= len(TEMPLATE_MAPPING) * 3 / 4
    assert {"chatml", "llama3", "llama", "chatglm2", "qwen2.5"} <= set(WRITABLE)


@pytest.mark.parametrize("key", ["chatml", "llama3", "default", "openbuddy"])
def test_system_of_the_run(key, tokenizer):
    system = ' From "the flag"\n'
    bound = get_template(key, tokenizer, system=system)
    for own in SYSTEMS:
        assert_same(bound, conversation(2, own), default_system=system)
    assert_same(bound, [{"role": "assistant", "content": "plain"}], default_system=system)


def test_rounds_answer_prefix_and_stripping(tokenizer):
    info = TemplateInfo(
        prefix=["{{ROUND}} stays", "[{{SYSTEM}}]"],
        prompt=['{{ROUND0}}/{{ROUND1}}/{{ROUND}} {{SYSTEM}} {{QUERY}}\t\r\n\u2028\\n"\\', ["eos_token_id"], "A:"],
        chat_sep=[],
        suffix=["}}", ["eos_token_id", 0]],
        default_system=" d ",
        strip=True,
        answer_prefix="<think>\n\n</think>\n\n",
    )
    template = ChatTemplate(info, tokenizer)
    assert_same(template, [{"role": "assistant", "content": " plain text\n"}])
    for num_turns, system, last_answer in itertools.product((1, 2, 3), SYSTEMS, (True, False)):
        assert_same(template, conversation(num_turns, system, last_answer=last_answer))


def apply(info: TemplateInfo, tokenizer, messages, **options):
    return tokenizer.apply_chat_template(messages, chat_template=to_jinja(info, tokenizer), tokenize=False, **options)


@pytest.mark.parametrize(
    ("messages", "options", "problem"),
    [
        (conversation(1, "Be brief."), {}, "no slot for a system prompt"),
        (conversation(2, None), {}, "one question and one response"),
        ([*conversation(1, None), {"role": "tool", "content": "3"}], {}, "one question and one response"),
        ([{"role": "tool", "content": "3"}], {}, "no place for the role tool"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], {}, "two user messages"),
        (conversation(1, None), {"add_generation_prompt": True}, "there is nothing to answer"),
        (conversation(1, None), {"tools": [{"type": "function", "function": {"name": "f"}}]}, "no format for tools"),
        (
            [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}],
            {},
            "no format for tools",
        ),
    ],
)
def test_refusals_of_jinja_name_their_reason(messages, options, problem, tokenizer):
    with pytest.raises(JinjaError, match=problem):
        apply(TEMPLATE_MAPPING["default-generation"], tokenizer, messages, **options)


def test_templates_with_functions_have_no_jinja(tokenizer):
    with pytest.raises(TemplateError, match="with a function"):
        to_jinja(TEMPLATE_MAPPING["qwen3"], tokenizer)


def test_ids_without_a_text_are_refused(tokenizer):
    """What a server would tokenise would not be what was trained."""
    with pytest.raises(TemplateError, match="64790"):
        to_jinja(TEMPLATE_MAPPING["chatglm2"], tokenizer)


def test_system_without_a_place_is_refused(tokenizer):
    with pytest.raises(TemplateError, match="no slot"):
        to_jinja(TEMPLATE_MAPPING["default-generation"], tokenizer, system="x")


def test_missing_bos_is_explained(tokenizer_with_large_ids):
    with pytest.raises(TemplateError, match="bos_token_id"):
        to_jinja(TEMPLATE_MAPPING["llama"], tokenizer_with_large_ids)
