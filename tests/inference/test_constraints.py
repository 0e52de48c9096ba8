"""What is held to be JSON is JSON, as Python's own reader judges."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtune.inference.constraints import ForcedCall, JsonObject

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
OBJECTS = st.dictionaries(st.text(max_size=5), VALUES, max_size=4)


@pytest.mark.medium
@given(OBJECTS, st.sampled_from([None, 0, 2]), st.booleans())
def test_every_object_may_be_written(value, indent, ascii_only):
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    state = JsonObject()
    for place, character in enumerate(text):
        assert not state.is_complete, text[:place]
        state = state.after(character)
        assert state is not None, text[: place + 1]
    assert state.is_complete
    assert JsonObject().after(text) == state, "by pieces or at once"


@given(
    OBJECTS, st.integers(0, 200), st.text(alphabet='{}[]",:\\0123456789.eE+-truefalsn u\n', max_size=3), st.booleans()
)
def test_complete_text_parses_as_json(value, place, wedge, cuts):
    """A text that somebody has broken is refused somewhere, or is JSON still."""
    text = json.dumps(value)
    place = min(place, len(text))
    broken = text[:place] + wedge + text[place + cuts :]
    state = JsonObject().after(broken)
    if state is not None and state.is_complete:
        assert isinstance(json.loads(broken), dict)
    elif state is None:
        assert not is_bare_object(broken)


def is_bare_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict) and text[0] == "{" and text[-1] == "}"
    except ValueError:
        return False


@pytest.mark.parametrize(
    "text",
    ["[", "1", " {", '{"a" 1', '{"a":01', '{"a":1,}', '{"a":[1,]', '{a', '{"a":tru}', '{"a":"\n', '{"a":"\\x', "{}{",
     '{"a":-}', '{"a":1.}', '{"a":1e}', '{"a":.5', '{"a":NaN', '{"a":[}', "{]", "{}\n", '{"a":"\\u12G'],
)  # fmt: skip
def test_text_that_violates_json_is_refused(text):
    assert JsonObject().after(text) is None


def test_a_text_without_end_is_refused():
    assert JsonObject().after('{"a":' + "[" * 200) is None
    assert JsonObject().after('{"a":' + " " * 200) is None
    assert JsonObject().after('{"a":' + "1" * 200) is None


def test_a_call_that_is_asked_for():
    heads = ('{"name": "one", "arguments": ', '{"name": "other", "arguments": ')
    state = ForcedCall(heads)
    for piece in ('{"na', 'me": "o', 'ther", "arguments": {"a"', ": 1"):
        state = state.after(piece)
        assert state is not None
        assert not state.is_complete
    assert state.written == heads[1]
    assert state.after("}").is_complete
    assert ForcedCall(heads).after("Hello") is None
    assert ForcedCall(heads).after(heads[0] + "[") is None


def test_a_form_at_the_highest_temperature_is_cheap(monkeypatch):
    """Where nearly no token can go on, its text alone says so: it is decoded once, and not at every step."""
    import torch
    from transformers import AutoTokenizer

    from llmtune.inference.rows import Row
    from llmtune.inference.sampling import Sampling, next_scores
    from llmtune.models.tiny import tiny_folder
    from llmtune.templates.lookup import get_template
    from llmtune.types import Encoded

    tokenizer = AutoTokenizer.from_pretrained(str(tiny_folder()))
    template = get_template("chatml", tokenizer)
    decoded, own = [], tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda *given, **named: (decoded.append(1), own(*given, **named))[1])
    steps, counts = 0, []
    draw = torch.Generator().manual_seed(0)
    for seed in range(16):
        sampling = Sampling(max_new_tokens=40, do_sample=True, temperature=100.0, seed=seed)
        row = Row(Encoded([1]), sampling, template, constraint=JsonObject())
        decoded.clear()
        while row.finish_reason is None:
            row.add(int(next_scores(row, torch.randn(len(tokenizer), generator=draw)).argmax()))
            steps += 1
        counts.append(len(decoded) / len(row.ids))
    assert sum(counts[8:]) / 8 < 16, "once the vocabulary is known"
    assert steps > 100
