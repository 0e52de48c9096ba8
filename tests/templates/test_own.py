"""`--template_type auto`: the tokenizer's own chat template renders; what is trainable is found in its text."""

from __future__ import annotations

import copy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmtune.cli.main import main
from llmtune.errors import TemplateError, UsageError
from llmtune.models.tiny import tiny_folder
from llmtune.templates.lookup import get_template
from llmtune.templates.matching import matching_template
from llmtune.templates.own_render import PROBES
from llmtune.templates.parity import prompt_difference, sample_difference, upstream_ids
from llmtune.types import IGNORE_INDEX, Conversation, Message

SAME = {"qwen1.5": "qwen1_5", "qwen2.5": "qwen2_5", "qwen3": "qwen3", "llama3": "llama3_1", "internlm2": "internlm2"}
contents = st.text(alphabet=st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="<>[]|"), max_size=8)
before, after = st.sampled_from(["", " ", "\n"]), st.sampled_from(["", "\n\n"])
spaced = st.builds(lambda a, b, c: a + b + c, before, contents, after)
rows = st.builds(
    lambda system, pairs: Conversation(
        (*(Message("system", text) for text in system),
         *(message for question, answer in pairs
           for message in (Message("user", question), Message("assistant", answer, loss=True))))
    ),
    st.lists(spaced, max_size=1),
    st.lists(st.tuples(spaced, spaced), min_size=1, max_size=3),
)  # fmt: skip


@pytest.mark.parametrize("name", SAME)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(row=rows)
def test_the_same_as_the_template_written_by_hand(name, real_tokenizer, row):
    tokenizer = real_tokenizer(SAME[name])
    own, written = get_template("auto", tokenizer), get_template(name, tokenizer)
    assert own.encode_prompts([row]) == written.encode_prompts([row])
    ours, theirs = own.encode_rows([row])[0], written.encode_rows([row])[0]
    trainable = [[label for sample in found.samples for label in sample.labels if label != IGNORE_INDEX]
               for found in (ours, theirs)]  # fmt: skip
    assert trainable[0] == trainable[1]
    assert [sample.input_ids for sample in ours.samples] == [sample.input_ids for sample in theirs.samples]


def with_template(source: str):
    from transformers import AutoTokenizer

    tokenizer = copy.deepcopy(AutoTokenizer.from_pretrained(str(tiny_folder())))
    tokenizer.chat_template = source
    return get_template("auto", tokenizer)


PLAIN = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + (m['content'] | trim) + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MOVES_SYSTEM = (
    "{% set system = messages[0]['content'] if messages[0]['role'] == 'system' %}"
    "{% for m in messages if m['role'] != 'system' %}{% if m['role'] == 'user' %}"
    "[{% if loop.last and system %}{{ system }}: {% endif %}{{ m['content'] }}]"
    "{% else %}{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
)
THINKS = (
    "{% for m in messages %}{% if m['role'] == 'user' %}U:{{ m['content'] }}"
    "{% else %}A:{{ m['content'].split('</think>')[-1] }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A:<think>\n{% endif %}"
)
NO_STOP = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def shown(template, row) -> list[str]:
    """The samples of a row as text, with what is trainable in brackets of their own."""
    texts = []
    for sample in template.encode_all(row):
        text, before = "", False
        for token, label in zip(sample["input_ids"], sample["labels"], strict=True):
            text += ("", "»", "«")[((label != IGNORE_INDEX) - before) % 3]
            before = label != IGNORE_INDEX
            text += template.tokenizer.decode([token])
        texts.append(text + ("«" if before else ""))
    return texts


TWO_TURNS = {"messages": [
    {"role": "system", "content": "S"}, {"role": "user", "content": "One"}, {"role": "assistant", "content": "Two"},
    {"role": "user", "content": "Three"}, {"role": "assistant", "content": " Four\n"},
]}  # fmt: skip


def test_contents_that_the_template_changes():
    (text,) = shown(with_template(PLAIN), TWO_TURNS)
    assert text.endswith("user\nThree<|im_end|>\n<|im_start|>assistant\n»Four<|im_end|>«")
    assert "assistant\n»Two<|im_end|>«\n<|im_start|>user" in text


def test_a_system_prompt_that_moves():
    """The template writes it where a question waits, and drops it once that is answered: trained is what is served."""
    first, second = shown(with_template(MOVES_SYSTEM), TWO_TURNS)
    assert first == "[S: One]»Two<|im_end|>«"
    assert second == "[One]Two<|im_end|>[S: Three]» Four\n<|im_end|>«"


def test_thoughts_that_the_prompt_opens():
    template = with_template(THINKS)
    row = {"query": "Q", "response": "<think>\nHm.\n</think>\nR"}
    assert shown(template, row) == ["U:QA:<think>\n»Hm.\n</think>\nR<|im_end|>«"]
    assert shown(template, {"query": "Q", "response": "R"}) == ["U:QA:<think>\n»\n</think>\n\nR<|im_end|>«"]


def test_a_template_without_a_stop_token():
    template = with_template(NO_STOP)
    assert shown(template, {"query": "Q", "response": "R"}) == ["user: Q\nassistant: »R<|im_end|>«"]
    assert template.stop_token_ids == [template.tokenizer.eos_token_id]


def test_control_tokens_in_contents_are_text():
    template = with_template(PLAIN)
    row = {"query": "a <|im_end|> b", "response": "<|im_start|>"}
    control = template.tokenizer.convert_tokens_to_ids("<|im_end|>")
    sample = template.encode(row)
    assert sample["input_ids"].count(control) == 2
    assert template.encode_rows([template_row(row)])[0].num_plain == 2


def template_row(row):
    from llmtune.data.formats import to_conversation

    return to_conversation(row)


def test_plain_text_and_everything():
    template = with_template(PLAIN)
    plain = template.encode({"text": "Only text"})
    assert template.tokenizer.decode(plain["input_ids"]) == "Only text<|im_end|>"
    assert plain["labels"] == [IGNORE_INDEX, *plain["input_ids"][1:]], "nothing stands before the first token"
    template.loss_on = "everything"
    assert IGNORE_INDEX not in template.encode({"query": "Q", "response": "R"})["labels"][1:]


def test_a_tokenizer_without_chat_template_is_refused():
    with pytest.raises(UsageError, match="has none"):
        with_template("")


@pytest.mark.parametrize("name", sorted({*SAME.values(), "chatglm3"}))
def test_auto_equals_the_tokenizers_own_on_the_probes(name, real_tokenizer):
    """What `check --template` asks of any model, on the real tokenizers."""
    template = get_template("auto", real_tokenizer(name))
    for probe, conversation in PROBES.items():
        if probe == "tools" and name not in ("qwen2_5", "qwen3"):
            with pytest.raises(TemplateError, match=r"refuses the row|drops the row's call of 'weather'"):
                template.encode(conversation)
            continue
        assert prompt_difference(template, conversation) is None, probe
        assert sample_difference(template, conversation) is None, probe


def test_the_template_of_a_folder(assets):
    found = {name: matching_template(assets / "tokenizers" / name)[0] for name in (*SAME.values(), "baichuan2")}
    assert found == {name: key for key, name in SAME.items()} | {"baichuan2": None}


def model_folder(tmp_path, assets, name):
    import json
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(assets / "tokenizers" / name, folder)
    (folder / "config.json").write_text(json.dumps({"architectures": ["Own"], "model_type": "own"}))
    return str(folder)


@pytest.mark.medium
def test_check_template_lists_each_probe(tmp_path, assets, capsys):
    folder = model_folder(tmp_path, assets, "qwen2_5")
    assert main(["check", "--template", "--model_id_or_path", folder]) == 0
    captured = capsys.readouterr()
    assert captured.out.count(" equal\n") == len(PROBES)
    assert "No --model_type given: using auto (config.json says Own" in captured.err
    assert main(["check", "--model_id_or_path", folder, "--template_type", "chatml", "--template"]) == 1
    said = capsys.readouterr().out
    assert "differs at token 5 of the prompt" in said
    assert "->     5     264 ' a'" in said
    assert "1207 ' Q'" in said
    assert main(["check", "--model_id_or_path", folder, "--template_type", "yi", "--template"]) == 1
    assert "refused: this template has no tool format" in capsys.readouterr().out


def test_upstream_ids_of_a_probe(real_tokenizer):
    """The probes differ from each other: a template that ignored turns or system prompts would be seen."""
    tokenizer = real_tokenizer("qwen2_5")
    assert len({tuple(upstream_ids(tokenizer, probe)) for probe in PROBES.values()}) == len(PROBES)
