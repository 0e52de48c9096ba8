"""A chat template that loops, or builds gigabytes, is stopped when a model is loaded; the process is not hurt."""

from __future__ import annotations

import json
import shutil
import time

import pytest

from llmtune.errors import TemplateError
from llmtune.templates import vetted as module
from llmtune.templates.matching import matching_template
from llmtune.templates.vetted import vetted

from .own_families import own_template

HOSTILE = {
    "loops": "{% for i in range(90000) %}{% for j in range(90000) %}{% for k in range(90000) %}{% endfor %}{% endfor %}"
    "{% endfor %}",
    "multiplies": "{{ 'a' * 100000000000 }}",
    "doubles": "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}"
    "{{ ns.s }}",
    "pads": "{{ 'a'.ljust(30000000000) }}",
    "writes much": "{% for i in range(2000) %}{{ 'a' * 10000 }}{% endfor %}",
    "keeps much": "{% set ns = namespace(l=[]) %}{% for i in range(90000) %}{% set ns.l = ns.l + ['a' * 1000000] %}"
    "{% endfor %}",
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(module, "TIME_LIMIT_S", 1.0)


@pytest.mark.medium
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_template_is_stopped(kind, tmp_path, assets):
    started = time.monotonic()
    with pytest.raises(TemplateError, match="was stopped: it"):
        own_template(HOSTILE[kind])
    folder = tmp_path / "model"
    shutil.copytree(assets / "tokenizers/qwen2_5", folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": HOSTILE[kind]}))
    with pytest.raises(TemplateError, match="was stopped: it"):
        matching_template(folder)
    assert time.monotonic() - started < 10


def test_what_is_made_comes_back():
    texts = ["é\ud800", None, "x" * 200_000]
    assert vetted(lambda: texts) == texts
    with pytest.raises(TemplateError, match="characters of a few words"):
        vetted(lambda: ["x" * 10_000_001])


def test_a_template_that_refuses_is_no_hostile_one():
    template = own_template(
        "{{ raise_exception('no') if messages | length > 2 }}{{ messages[-1]['content'] }}<|im_end|>"
    )
    assert template.render({"query": "a", "response": "b"}).endswith("b<|im_end|>")
