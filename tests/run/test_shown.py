"""What a notebook shows of a result, checked data and a plan: escaped, self-contained HTML."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llmtune import SftArguments, check, plan
from llmtune.training.result import SftResult

EVIL = "<script>alert(1)</script>&"


class Reader(HTMLParser):
    """Collects tags and text, and fails where a tag is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href") or name.startswith("on")]
        if not (self.get_starttag_text() or "").endswith("/>"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def read(text: str) -> Reader:
    found = Reader(text)
    assert "script" not in found.tags
    assert not found.links, "it shows what it holds, and asks nobody"
    return found


def result(folder: Path, **given: object) -> SftResult:
    return SftResult(folder, **{"best_checkpoint": None, "last_checkpoint": None, **given})  # type: ignore[arg-type]


def test_a_result_shows_metrics_curves_and_responses(tmp_path: Path) -> None:
    log = [{"global_step": step, "loss": 2.0 / step, "time": 1.0} for step in (1, 2, 3)]
    log += [{"global_step": 3, "eval_loss": float("nan")}, {"global_step": 2, "eval_loss": 0.5}]
    (tmp_path / "logging.jsonl").write_text("".join(json.dumps(one) + "\n" for one in log))
    samples = [{"step": step, "prompt": EVIL, "response": f"at {step}", "reference": "r"} for step in (2, 3)]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(one) + "\n" for one in samples))
    made = result(tmp_path, metrics={"train_loss": 0.123456}, best_checkpoint=tmp_path / "checkpoint-3")
    shown = read(made._repr_html_())
    assert shown.tags.count("polyline") == 2
    assert all(text in shown.text for text in ("0.1235", "checkpoint-3", "loss 0.6667", "eval_loss 0.5", "at 3", EVIL))
    assert "at 2" not in shown.text, "only the last evaluation"


def test_a_result_without_files_shows_what_there_is(tmp_path: Path) -> None:
    shown = read(result(tmp_path / "gone", interrupted="Ctrl-C")._repr_html_())
    assert "no checkpoint was saved" in shown.text
    assert "Ctrl-C" in shown.text
    assert "svg" not in shown.tags


@pytest.mark.medium
def test_checked_data_shows_masks_statistics_and_skipped_rows(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"query": EVIL, "response": "fine"}] * 8 + [{"query": 7, "response": None}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = check(SftArguments(model_type="llmtune-tiny", dataset=[str(file)]), rows=2)
    assert len(found.samples) == 2
    text = found._repr_html_()
    shown = read(text)
    assert text.count("<div class='tokens'>") == 2
    assert 'class="trainable"' in text
    assert EVIL in shown.text
    assert f"skipped: {file}, line 9" in shown.text


@pytest.mark.medium
def test_a_plan_shows_its_table_and_what_would_fit() -> None:
    small = plan(SftArguments(model_type="llmtune-tiny", dataset=["tiny-qa#20"]), gpu="24GB")
    assert "fits" in read(small._repr_html_()).text
    assert all(text in read(small._repr_html_()).text for text in small.rows().values())
