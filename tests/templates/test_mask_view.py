"""What is trainable, as a picture: no token is lost, nothing in the data is interpreted."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtune.models.tiny import tiny_folder
from llmtune.templates.mask_view import (
    PLACEHOLDER,
    HtmlRow,
    TokenView,
    to_ansi,
    to_html,
    token_views,
    with_short_media,
)
from llmtune.types import IGNORE_INDEX


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    from transformers import AutoTokenizer

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return AutoTokenizer.from_pretrained(tiny_folder())


def views_of(tokenizer, text: str) -> list[TokenView]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return token_views(tokenizer, ids, [IGNORE_INDEX] * len(ids))


def test_texts_ids_and_marks(tokenizer):
    ids = tokenizer("<|im_start|>user\nHi", add_special_tokens=False)["input_ids"]
    views = token_views(tokenizer, ids, [IGNORE_INDEX, *ids[1:]])
    assert "".join(view.text for view in views) == "<|im_start|>user⏎\nHi"
    assert [view.trainable for view in views] == [False] + [True] * (len(ids) - 1)
    assert [view.token_id for view in views] == ids


def test_character_of_several_tokens_shows_on_the_last(tokenizer):
    views = views_of(tokenizer, "🦜")
    assert [view.text for view in views] == [PLACEHOLDER] * (len(views) - 1) + ["🦜"]
    assert len(views) > 1


def test_token_that_ends_inside_a_character():
    """A token may hold whole characters and the first bytes of the next."""

    class Bytes:
        tokens = (b"a\xe4", b"\xbd", b"\xa0b", b"\xff", b"\xff", b"\xff", b"\xff", b"c")

        def decode(self, ids, **_):
            return b"".join(self.tokens[token] for token in ids).decode(errors="replace")

    views = token_views(Bytes(), range(8), [0] * 8)
    assert [view.text for view in views[:3]] == ["a·", "·", "你b"]
    assert "\ufffd" in views[6].text  # bytes that no character begins with are given up after four
    assert views[7].text == "c"


def test_leading_blanks_of_sentencepiece_tokens_stay():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "▁the": 1, "▁cat": 2}, "<unk>"))
    backend.decoder = decoders.Metaspace()
    views = token_views(PreTrainedTokenizerFast(tokenizer_object=backend), [1, 2, 2], [0, 0, 0])
    assert [view.text for view in views] == ["the", " cat", " cat"]


def test_control_characters_do_not_reach_the_terminal(tokenizer):
    text = "".join(view.text for view in views_of(tokenizer, "a\x1b[31m\r\n\x07\x9b\tb"))
    assert text.replace(PLACEHOLDER, "") == "a␛[31m␍⏎\n␇␦\tb"


def test_labels_of_another_length_are_refused(tokenizer):
    with pytest.raises(ValueError, match="shorter"):
        token_views(tokenizer, [5, 6], [5])


@settings(max_examples=80, deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn", "Co"], exclude_characters="\ufffd·"), max_size=30)
)
def test_every_token_has_a_view_and_no_text_is_lost(tokenizer, text):
    import unicodedata

    views = views_of(tokenizer, text)
    assert "".join(view.text for view in views).replace(PLACEHOLDER, "") == unicodedata.normalize("NFC", text)


def test_a_token_may_end_one_character_and_begin_the_next(tokenizer):
    """Bytes 4 and 5 of these two characters are one token of the embedded vocabulary."""
    texts = [view.text for view in views_of(tokenizer, "\U0002dc65\u9000")]
    assert texts == [PLACEHOLDER] * 3 + ["\U0002dc65" + PLACEHOLDER, PLACEHOLDER, "\u9000"]


VIEWS = [
    TokenView("Q", False),
    TokenView("a", True),
    TokenView("b⏎\nc", True),
    TokenView("<&>", False),
    TokenView("d", True),
]


def test_without_colour_trainable_tokens_are_in_brackets():
    assert to_ansi(VIEWS, colour=False) == "Q⟦ab⏎\nc⟧<&>⟦d⟧"
    assert to_ansi([], colour=False) == ""


def test_trainable_tokens_alternate_two_shades():
    text = to_ansi(VIEWS, colour=True)
    assert re.sub(r"\x1b\[[0-9;]*m", "", text) == "Qab⏎\nc<&>d"
    trainable = re.findall(r"\x1b\[([0-9;]+48[0-9;]+)m([^\x1b]*)\x1b\[0m", text)
    assert [shown for _, shown in trainable] == ["a", "b⏎", "c", "d"]
    shades = [shade for shade, _ in trainable]
    assert shades[0] != shades[1] == shades[2]
    assert all(line.count("\x1b[0m") * 2 == line.count("\x1b") for line in text.split("\n"))  # none over a line's end


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


def test_page_escapes_and_stands_alone():
    evil = "<script>alert('x')</script>"
    views = [TokenView(evil, True, 7), TokenView("{title}", False, 8)]
    text = to_html(evil, {evil: evil}, [HtmlRow(evil, views)])
    page = Page(text)
    assert page.texts.count(evil) == 6  # title, heading, table twice, token, rendered text
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe"}
    assert not re.search(r"https?:|url\(|@import|\bsrc=|\bhref=", text)
    spans = [attrs for tag, attrs in page.tags if tag == "span" and "title" in attrs]
    assert spans == [{"class": "trainable", "title": "7"}, {"title": "8"}]
    assert "prefers-color-scheme: dark" in text
    assert "{title}" in page.texts


def test_page_can_be_written(tmp_path: Path):
    file = tmp_path / "page.html"
    file.write_text(to_html("t", {}, [HtmlRow("你好", VIEWS)] * 2), encoding="utf-8")
    assert "5 tokens, 3 trainable" in file.read_text(encoding="utf-8")


def test_the_positions_of_an_image_are_shown_as_one():
    views = [TokenView(text, False, token) for text, token in (("a", 1), ("<i>", 9), ("<i>", 9), ("b", 2), ("<i>", 9))]
    assert to_ansi(with_short_media(views, {9}), colour=False) == "a<i> x 2b<i>"
