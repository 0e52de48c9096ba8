"""Counts of encoded rows, and what is said of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from llmtune.errors import DataError
from llmtune.types import IGNORE_INDEX
from llmtune.utils.logging import get_logger

if TYPE_CHECKING:
    from llmtune.templates.chat import ChatTemplate
    from llmtune.templates.comparisons import EncodedComparison
    from llmtune.templates.encode import EncodedRow
    from llmtune.templates.prompts import EncodedPrompt


@dataclass(slots=True)
class EncodeReport:
    """Counts of encoded rows. `problems`: the first few rows that the template cannot express, with the reason.

    Of comparisons: `num_pairs` differ in rank, `num_ties` do not; `num_chosen_longer` of the pairs have more tokens in
    the better response; `num_good` responses are labelled so; `num_turns_cut` turns were cut from prompts.

    Of online training: `num_prompts` are responded to.

    Of pre-training: `num_documents` were cut into `num_windows`, and `num_continued` of them have several; `num_bytes`
    of UTF-8 text are trainable.
    """

    num_rows: int = 0
    num_samples: int = 0
    num_tokens: int = 0
    num_trainable: int = 0
    num_truncated: int = 0
    num_cut_tokens: int = 0
    num_cut_trainable: int = 0
    num_deleted: int = 0
    num_untrainable: int = 0
    num_split_rows: int = 0
    num_plain: int = 0
    num_cut_images: int = 0
    num_with_images: int = 0
    num_weighted: int = 0
    num_responses: int = 0
    num_pairs: int = 0
    num_ties: int = 0
    num_chosen_longer: int = 0
    num_good: int = 0
    num_turns_cut: int = 0
    num_prompts: int = 0
    num_documents: int = 0
    num_windows: int = 0
    num_continued: int = 0
    num_bytes: int = 0
    num_problems: int = 0
    problems: list[str] = field(default_factory=list)

    def add_problem(self, name: str, problem: str) -> None:
        self.num_problems += 1
        if len(self.problems) < 5:
            self.problems.append(f"{name}: {problem}")

    def count(self, row: EncodedRow, name: str) -> None:
        """Count a row and its samples."""
        self.num_rows += 1
        self.num_truncated += row.num_truncated
        self.num_cut_tokens += row.num_cut_tokens
        self.num_cut_trainable += row.num_cut_trainable
        self.num_deleted += row.num_deleted
        self.num_untrainable += row.num_untrainable
        self.num_plain += row.num_plain
        self.num_cut_images += row.num_cut_images
        self.num_split_rows += len(row.samples) > 1 and not row.num_documents
        self.num_documents += row.num_documents
        self.num_windows += row.num_windows
        self.num_continued += row.num_windows > 1
        self.num_bytes += row.num_bytes
        if row.problem is not None:
            self.add_problem(name, row.problem)
            return
        self.num_samples += len(row.samples)
        self.num_tokens += sum(len(sample.input_ids) for sample in row.samples)
        self.num_trainable += sum(sample.num_trainable for sample in row.samples)
        self.num_weighted += sum(sample.weights is not None for sample in row.samples)


def merged(reports: Sequence[EncodeReport]) -> EncodeReport:
    """Return the counts of several shards together."""
    names = [field.name for field in fields(EncodeReport) if field.name != "problems"]
    sums = {name: sum(getattr(report, name) for report in reports) for name in names}
    return EncodeReport(**sums, problems=[line for report in reports for line in report.problems][:5])


def count_comparison(report: EncodeReport, row: EncodedComparison, name: str) -> None:
    """Count a row of comparisons."""
    report.num_rows += 1
    report.num_plain += row.num_plain
    report.num_deleted += row.is_too_long
    report.num_turns_cut += row.num_turns_cut if row.responses else 0
    if row.problem is not None:
        report.add_problem(name, row.problem)
    if not row.responses:
        return
    report.num_samples += 1
    report.num_truncated += row.num_turns_cut > 0
    report.num_responses += len(row.responses)
    report.num_good += sum(bool(one.label) for one in row.responses)
    report.num_tokens += len(row.prompt) + sum(len(one.input_ids) for one in row.responses)
    report.num_trainable += sum(label != IGNORE_INDEX for one in row.responses for label in one.labels)
    for better, worse in itertools.combinations(row.responses, 2):  # the best first
        report.num_pairs += better.rank < worse.rank
        report.num_ties += better.rank == worse.rank
        report.num_chosen_longer += better.rank < worse.rank and len(better.input_ids) > len(worse.input_ids)


def count_prompt(report: EncodeReport, row: EncodedPrompt, name: str) -> None:
    """Count a row of prompts."""
    report.num_rows += 1
    report.num_deleted += row.is_too_long
    if row.problem is not None:
        report.add_problem(name, row.problem)
    if not row.input_ids:
        return
    report.num_prompts += 1
    report.num_samples += 1
    report.num_truncated += row.num_turns_cut > 0
    report.num_turns_cut += row.num_turns_cut
    report.num_tokens += len(row.input_ids)


def comparisons_text(report: EncodeReport) -> str:
    """Describe the comparisons in one line; "" without any."""
    if report.num_pairs:
        longer = report.num_chosen_longer / report.num_pairs
        ties = f", {report.num_ties:,} ties" if report.num_ties else ""
        return f"{report.num_pairs:,} pairs{ties}; in {longer:.0%} the chosen response is the longer one"
    if report.num_responses:
        good = report.num_good / report.num_responses
        return f"{report.num_responses:,} labelled responses, {report.num_good:,} of them good ({good:.0%})"
    return ""


def tell_report(report: EncodeReport, template: ChatTemplate, *, name: str, strict: bool) -> None:
    log = get_logger()
    if report.num_problems:
        text = f"{report.num_problems:,} of {report.num_rows:,} {name} rows cannot be written with the template"
        text += f" {template.name!r}; first: {report.problems[0]}."
        if strict or report.num_problems == report.num_rows:
            raise DataError(f"{text} Fix them, or choose another --template_type.")
        log.warning("%s They are skipped (--strict true makes this fatal).", text)
    limit = f"--max_length {template.max_length}"
    for number, what in (
        (report.num_deleted, f"are longer than {limit} and were skipped"),
        (report.num_cut_images, f"were skipped, since truncating them to {limit} would cut an image: raise it"),
        (report.num_untrainable, "have no trainable tokens left (nothing left to learn) and were skipped"),
    ):
        if number:
            log.warning("%s of %s %s samples %s.", f"{number:,}", f"{_total(report):,}", name, what)
    if report.num_turns_cut:
        text = "%s of %s %s samples are longer than %s: %s turns were cut from the start of their prompts."
        log.warning(text, f"{report.num_truncated:,}", f"{_total(report):,}", name, limit, f"{report.num_turns_cut:,}")
    elif report.num_truncated:
        side = "start" if template.truncation_strategy == "left" else "end"
        text = f"{report.num_truncated:,} of {_total(report):,} {name} samples are longer than {limit}"
        text += f" and lost {report.num_cut_tokens:,} tokens at their {side}"
        text += f", {report.num_cut_trainable:,} of them trainable" if report.num_cut_trainable else ""
        if report.num_truncated > 0.01 * _total(report) or report.num_cut_trainable:
            log.warning("%s. To skip such samples instead: --truncation_strategy delete.", text)
        else:
            log.info("%s.", text)
    if report.num_with_images and template.media is None:
        text = "%s %s rows name images, but this model takes text only: the images are ignored."
        log.warning(text, f"{report.num_with_images:,}", name)
    if report.num_weighted:
        text = "%s of %s %s samples hold messages with a loss weight other than 1."
        log.info(text, f"{report.num_weighted:,}", f"{report.num_samples:,}", name)
    if report.num_split_rows:
        log.info("%s %s rows were split into one sample per assistant turn.", f"{report.num_split_rows:,}", name)
    if report.num_continued:
        text = "%s of %s %s documents are longer than %s and continue in further windows, %s in all: nothing is cut."
        counts = (f"{number:,}" for number in (report.num_continued, report.num_documents))
        log.info(text, *counts, name, limit, f"{report.num_windows:,}")
    if report.num_plain:
        text = "%s contents spell a control token and were encoded as plain text (--special_tokens_in_text)."
        log.info(text, f"{report.num_plain:,}")


def _total(report: EncodeReport) -> int:
    return report.num_samples + report.num_deleted + report.num_untrainable + report.num_cut_images
