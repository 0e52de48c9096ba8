"""report.md: settings, data, speed and results of a run, on one page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmtune.models.devices import device_name
from llmtune.run.log import Decisions, documents_text
from llmtune.samples.encode_report import EncodeReport, comparisons_text
from llmtune.utils.files import read_records, write_text

MEASURES = (("perplexity", 2), ("bits_per_byte", 4))
"""Measures of a language model, with their decimals."""


@dataclass
class Report:
    """Content of report.md. `generations`: (prompt, reference, generation). `packs`, `blocks`: "" without them.

    `num_skipped`: steps skipped by `--on_nan skip`.
    """

    title: str
    command: str
    decisions: Decisions
    data: EncodeReport
    trainable: int
    parameters: int
    seconds: float
    seconds_to_first_step: float
    throughput: dict[str, float]
    best_checkpoint: str
    last_checkpoint: str
    packs: str = ""
    blocks: str = ""
    num_skipped: int = 0
    interrupted: str = ""
    generations: list[tuple[str, str, str]] = field(default_factory=list)

    preferences: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        log = folder / "logging.jsonl"
        self.preferences = _preferences(read_records(log)) if log.is_file() else {}
        write_text(folder / "report.md", self._text(_losses(log)))

    def _text(self, losses: dict[str, float]) -> str:
        share = self.trainable / max(self.parameters, 1)
        table = {
            "device": device_name(),
            "duration": f"{self.seconds:.1f} s; {self.seconds_to_first_step:.1f} s to the first step",
            "trainable parameters": f"{self.trainable:,} of {self.parameters:,} ({share:.2%})",
            "samples": f"{self.data.num_samples:,} of {self.data.num_rows:,} rows",
            **({"comparisons": comparisons} if (comparisons := comparisons_text(self.data)) else {}),
            "tokens": f"{self.data.num_tokens:,} of prompts"
            if self.data.num_prompts
            else f"{self.data.num_tokens:,}, {self.data.num_trainable:,} of them trainable",
            **({"documents": documents} if (documents := documents_text(self.data)) else {}),
            **({"packs": self.packs} if self.packs else {}),
            **({"blocks": self.blocks} if self.blocks else {}),
            "truncated or skipped": _cut_text(self.data),
            **({"steps skipped (NaN/inf loss)": _skipped_text(self.num_skipped)} if self.num_skipped else {}),
            "tokens/s (without padding)": f"{self.throughput['useful_tokens_per_second']:,}",
            "tokens/s (with padding)": f"{self.throughput['computed_tokens_per_second']:,}",
            "padding": f"{self.throughput['padding_share']:.2%}",
            "trainable tokens": f"{self.throughput['trainable_share']:.2%} of those without padding",
            **_compute_text(self.throughput),
            "waiting for data": f"{self.throughput['data_wait_share']:.2%} of step time",
            "peak memory": f"{self.throughput['peak_memory_gib']:.2f} GiB",
            **{name: f"{value:.4f}" for name, value in losses.items()},
            **_text_measures(self.throughput),
            **self.preferences,
            "best checkpoint": self.best_checkpoint,
            "last checkpoint": self.last_checkpoint,
        }
        interrupted = f"Interrupted by {self.interrupted}.\n" if self.interrupted else ""
        lines = [f"# {self.title}", "", interrupted, f"`{self.command}`", ""]
        lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in table.items()), ""]
        lines += ["## Settings", "", *(f"- {line}" for line in self.decisions.fact_lines()), ""]
        if self.decisions:
            lines += ["Settings chosen automatically:", "", *(f"- {line}" for line in self.decisions), ""]
        if self.generations:
            lines += ["## Generations", ""]
            for question, reference, answer in self.generations:
                lines += [
                    _quoted("prompt", question),
                    _quoted("reference", reference),
                    _quoted("generation", answer),
                    "",
                ]
        return "\n".join(lines) + "\n"


def _compute_text(throughput: dict[str, float]) -> dict[str, str]:
    if "tflops" not in throughput:
        return {}
    share = f", {throughput['mfu']:.1%} of the GPU's peak (MFU)" if "mfu" in throughput else ""
    return {"compute": f"{throughput['tflops']:g} model TFLOP/s (recomputation not counted){share}"}


def _text_measures(metrics: dict[str, float]) -> dict[str, str]:
    """Perplexity and bits per byte of pre-training, of the training and of the last evaluation."""
    names = [(f"{phase}_{name}", digits) for phase in ("train", "eval") for name, digits in MEASURES]
    return {name.replace("_", " "): f"{metrics[name]:.{digits}f}" for name, digits in names if name in metrics}


CURVES = (
    *("rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected", "kl", "objective/kl", "reward"),
    *("reward_std", "frac_reward_zero_std", "completions/mean_length", "completions/clipped_ratio", "entropy"),
    *("clip_ratio/region_mean", "explained_variance"),
)
SECONDS = {"rollout_seconds": "writing", "reward_seconds": "scoring", "logps_seconds": "log-probabilities"}
"""Parts of a round of online training, beside the learning."""
BOTH_FALL = (
    "both fell, as is usual: the margin between them is what is trained. Where the chosen responses should become more "
    "probable, add --sft_weight, or use --loss apo_zero"
)


OF_REWARD = re.compile(r"rewards/(?!margins|accuracies|chosen|rejected).*/mean")


def _preferences(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """First and last values of what stages of preferences log, and a word on log-probabilities that fall together."""
    found = {}
    own = sorted({name for record in records for name in record if OF_REWARD.fullmatch(name)})
    values = {name: [record[name] for record in records if name in record] for name in (*CURVES, *own)}
    for name, one in values.items():
        if one:
            found[name] = f"{one[0]:.4g} at first, {one[-1]:.4g} at last"
    parts = {text: [record[name] for record in records if name in record] for name, text in SECONDS.items()}
    if any(parts.values()):
        told = (f"{text} {sum(one) / len(one):.2f}" for text, one in parts.items() if one)
        found["seconds of a round, on average"] = ", ".join(told)
    sides = [values[name] for name in ("logps/chosen", "logps/rejected")]
    if all(side and side[-1] < side[0] for side in sides):
        found["log-probabilities"] = BOTH_FALL
    return found


def _losses(log_file: Path) -> dict[str, float]:
    if not log_file.is_file():
        return {}
    records = read_records(log_file)
    train = [record["loss"] for record in records if "loss" in record]
    evaluated = [record["eval_loss"] for record in records if "eval_loss" in record]
    found: dict[str, float] = {}
    for name, values in (("loss", train), ("eval loss", evaluated)):
        if values:
            found |= {f"first {name}": values[0], f"last {name}": values[-1], f"best {name}": min(values)}
    return found


def _cut_text(data: EncodeReport) -> str:
    parts = [
        (data.num_truncated, "samples truncated"),
        (data.num_deleted, "too long, left out"),
        (data.num_cut_images, "samples skipped: truncation would cut through an image"),
        (data.num_untrainable, "samples skipped: no trainable tokens"),
        (data.num_problems, "rows skipped: not expressible in the template"),
        (data.num_split_rows, "rows split into one sample per assistant turn"),
        (data.num_plain, "contents that spell a control token, encoded as plain text"),
    ]
    return "; ".join(f"{number:,} {what}" for number, what in parts if number) or "nothing"


def _quoted(name: str, text: str) -> str:
    body = text.strip().replace("\n", "\n  > ") or "(nothing)"
    return f"- {name}:\n\n  > {body}\n"


def _skipped_text(number: int) -> str:
    return f"{number:,} (--on_nan skip)"
