"""The training data of a run as facts: what `check` prints, what `check --json` and the board read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from llmtune.cli.check_statistics import statistics_of
from llmtune.utils.html import table

if TYPE_CHECKING:
    from llmtune.samples.prepare import Prepared
    from llmtune.templates.mask_view import TokenView

MOST_BARS = 40


@dataclass(frozen=True)
class ShownSample:
    """A sample as shown. `parts`: name (of a response, of several) and tokens."""

    index: int
    row: int
    length: int
    rendered: str
    parts: list[tuple[str, list[TokenView]]]

    @property
    def views(self) -> list[TokenView]:
        return [view for _, part in self.parts for view in part]


@dataclass(frozen=True)
class CheckedData:
    """The training data of a run.

    Attributes:
        left_out: Source, place, reason and excerpt of the first rows that were skipped.
        lengths: `edges` (n + 1) and `counts` (n) of the samples' lengths in tokens; `cut`: --max_length, None without.
        notes: What to look at.
    """

    statistics: dict[str, str]
    samples: list[ShownSample]
    left_out: list[dict[str, str]]
    lengths: dict[str, Any]
    notes: list[str]

    def _repr_html_(self) -> str:
        """The data in a notebook: samples token by token, statistics, skipped rows, notes."""
        from llmtune.templates.mask_view import tokens_html

        rows = {
            f"skipped: {one['source']}, {one['location']}": f"{one['reason']} {one['excerpt']}" for one in self.left_out
        }
        notes = {f"note {number}": text for number, text in enumerate(self.notes, start=1)}
        samples = [
            tokens_html(f"sample {one.index}, of row {one.row}" + (f", {name}" if name else ""), part)
            for one in self.samples
            for name, part in one.parts
        ]
        return "".join([*samples, table({**self.statistics, **rows, **notes})])

    def to_json(self) -> dict[str, Any]:
        samples = [
            {
                "index": one.index,
                "row": one.row,
                "length": one.length,
                "rendered": one.rendered,
                "parts": [{"name": name, "tokens": [asdict(view) for view in part]} for name, part in one.parts],
            }
            for one in self.samples
        ]
        own = {name: getattr(self, name) for name in ("statistics", "left_out", "lengths", "notes")}
        return own | {"samples": samples}


def check(args: Any, *, rows: int = 3) -> CheckedData:
    """Return the training data of a run: `rows` samples as tokens, statistics, skipped rows. Loads no weights.

    Raises:
        LlmtuneError: As the run would raise before it loads weights.
    """
    return check_data(args, rows)


def check_data(args: Any, num_samples: int) -> CheckedData:
    """Load and encode the data of a run, and describe it.

    Raises:
        LlmtuneError: As the run would raise before it loads weights.
    """
    from llmtune.data.loading import load_reports
    from llmtune.run.resolved import Run
    from llmtune.run.resume import check_same_data
    from llmtune.samples.prepare import data_identity, note_positions, prepare
    from llmtune.utils.logging import quiet_libraries

    quiet_libraries()
    resolved = Run.resolve(args)
    run = resolved.args
    with load_reports() as reports:
        prepared = prepare(run)
    if resolved.resume is not None:
        check_same_data(resolved.resume, data_identity(prepared))
    note_positions(prepared, run)
    statistics = statistics_of(prepared, run)
    notes = _rewards(run, prepared, statistics) if run.KIND == "prompts" else []
    left_out = [{"source": one.source, **asdict(bad)} for one in reports for bad in one.first_bad]
    left_out += [
        {"source": "template", "location": place, "reason": reason, "excerpt": ""}
        for place, _, reason in (text.partition(": ") for text in prepared.train_tokens.report.problems)
    ]
    shown = [_sample(prepared, index) for index in range(min(num_samples, len(prepared.train_tokens)))]
    return CheckedData(statistics, shown, left_out, _histogram(prepared, run.max_length), notes)


def _sample(prepared: Prepared, index: int) -> ShownSample:
    from llmtune.data.canonical import conversation_of
    from llmtune.samples.views import sample_views

    tokens = prepared.train_tokens
    row = tokens.row_of(index)
    rendered = prepared.template.render(conversation_of(prepared.train[row]))
    return ShownSample(index, row, len(tokens[index]["input_ids"]), rendered, sample_views(prepared, index))


def _histogram(prepared: Prepared, max_length: int) -> dict[str, Any]:
    import numpy as np

    lengths = prepared.lengths
    bars = int(min(MOST_BARS, lengths.max() - lengths.min() + 1))
    counts, edges = np.histogram(lengths, bins=bars)
    return {
        "edges": [round(float(edge), 1) for edge in edges],
        "counts": counts.tolist(),
        "cut": max_length if max_length > 0 else None,
    }


def _rewards(args: Any, prepared: Prepared, statistics: dict[str, str]) -> list[str]:
    """Add what the rewards give the reference responses to the statistics; return what is wrong with them."""
    from llmtune.rollouts.references import on_references
    from llmtune.training.online_setup import make_judge

    judge = make_judge(args, prepared)
    prompts: Any = prepared.train_set
    means, lines = on_references(judge, prompts, prepared.tokenizer)
    statistics |= {f"reward {name}": text for name, text in means.items()}
    return lines
