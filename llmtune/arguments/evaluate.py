"""The arguments of `evaluate()` and `llmtune eval`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from llmtune.arguments.fields import Problems, settle_texts
from llmtune.arguments.groups import DataArguments, GenerationArguments
from llmtune.arguments.infer import OF_GENERATION, InferArguments, LoadArguments
from llmtune.arguments.service import BASE_NAME
from llmtune.checkpoint import checkpoint_kind, checkpoint_of, is_reward, numbered_checkpoints
from llmtune.errors import CheckpointError
from llmtune.metrics import METRIC_MAPPING

BASE = BASE_NAME
"""Name of the base model in the table."""
NOT_HERE = ("ckpt_dir", "inherited", "unused")


@dataclass(kw_only=True)
class EvaluateArguments(GenerationArguments, DataArguments, LoadArguments):
    """Evaluation."""

    SYNONYMS = {ours: theirs for theirs, ours in InferArguments.SYNONYMS.items()}  # noqa: RUF012
    """Names of `llmtune infer` for the same arguments."""

    ckpt_dir: list[str] = field(default_factory=list)  # type: ignore[assignment]
    """Checkpoint folders, one table row each. None: the base model."""
    with_base: bool = False
    """Evaluate the base model too."""
    all_checkpoints: bool = False
    """Evaluate every checkpoint of the run given by --ckpt_dir, ordered by step, and plot the curves."""
    metrics: list[str] = field(default_factory=list)
    """Metrics (`llmtune list metrics`). Default: loss rouge bleu exact_match; choice for multiple-choice questions.
    Reward models have their own: loss, accuracy, margin."""
    num_samples: int = -1
    """Rows to evaluate, from the first; -1: all."""
    choice_style: Literal["text", "letter"] = "text"
    """Multiple choice: text scores the text of each choice after the question; letter lists the choices in the prompt
    and scores A, B, C, D."""
    suite: list[str] = field(default_factory=list)
    """Benchmarks run by lm-eval, by its task names (hellaswag mmlu); no other metrics are then computed."""
    suite_path: str | None = None
    """Folder of more lm-eval tasks, one YAML file each."""
    suite_chat: bool = True
    """Apply the chat template to the questions of --suite, as in serving; false: plain text."""
    num_fewshot: int | None = None
    """Few-shot examples per question of --suite. Default: the benchmark's."""
    eval_batch_size: int | None = None
    """Rows per forward pass, and rows to generate at a time. Default: 8, and as many generations as memory allows."""
    output_dir: str | None = None
    """Results folder; calling again resumes there. Default: eval, in the first checkpoint or in the run."""
    dataset_test_ratio: float = None  # type: ignore[assignment]
    """Fraction of each dataset that was split off for validation. Default: as in training."""
    dataset_seed: int = None  # type: ignore[assignment]
    """Seed for sampling and splitting rows. Default: as in training."""
    train_dataset_sample: int = None  # type: ignore[assignment]
    """Number of training rows that were sampled. Default: as in training."""
    max_length: int = None  # type: ignore[assignment]
    """Max prompt tokens; longer prompts lose their start; -1: no limit. Default: as in training."""
    max_new_tokens: int = 512
    """Max tokens per generation."""
    do_sample: bool = False
    """Sample; false: greedy decoding, or beam search with --num_beams."""

    def __post_init__(self) -> None:
        settle_texts(self)
        problems = Problems()
        for name in self.metrics:
            METRIC_MAPPING[name]
        problems.need(
            self.num_samples == -1 or self.num_samples >= 1,
            f"--num_samples must be -1, or 1 or more, not {self.num_samples}.",
        )
        size = self.eval_batch_size
        problems.need(size is None or size >= 1, f"--eval_batch_size must be 1 or more, not {size}.")
        problems.need(not self.all_checkpoints or bool(self.ckpt_dir), "--all_checkpoints true needs --ckpt_dir RUN.")
        problems.need(
            bool(self.suite) or (self.suite_path is None and self.num_fewshot is None),
            "--suite_path and --num_fewshot need --suite TASK ...",
        )
        problems.need(
            not (self.suite and self.metrics),
            "--suite has its own metrics: remove --metrics, or run the command twice.",
        )
        problems.raise_if_any()
        folders = [Path(folder) for folder in self.ckpt_dir]
        if self.all_checkpoints:
            self.checkpoints = [found for folder in folders for found in _of_run(folder)]
        else:
            self.checkpoints = [checkpoint_of(folder) for folder in folders]
        self._check_rewards(problems)
        problems.raise_if_any()
        self.first = self.arguments_of(self.checkpoints[0] if self.checkpoints else None)
        """Settings of the first checkpoint; all are evaluated on its rows."""
        self.inherited, self.unused = self.first.inherited, self.first.unused
        if self.scores:
            given = [name for name in OF_GENERATION if not self._is_default(name)]
            self.unused = [f"--{name}" for name in given]

    @property
    def scores(self) -> bool:
        """Whether the checkpoints are reward models."""
        return any(map(is_reward, self.checkpoints))

    def _check_rewards(self, problems: Problems) -> None:
        """Refuse what reward models cannot be measured by."""
        if not self.scores:
            return
        text = "The checkpoints are reward models, which are measured by loss, accuracy and margin on pairs"
        problems.need(not self.metrics, f"{text}: remove --metrics {' '.join(self.metrics)}.")
        problems.need(not self.suite, f"{text}: remove --suite {' '.join(self.suite)}.")
        problems.need(not self.with_base, f"{text}: the base model has no score, so remove --with_base.")
        others = [str(one) for one in self.checkpoints if not is_reward(one)]
        problems.need(not others, f"{', '.join(others)} and reward models cannot share a table: run the command twice.")

    def inherited_text(self) -> str:
        return self.first.inherited_text()

    def arguments_of(self, checkpoint: Path | None) -> InferArguments:
        """Arguments that load one of the checkpoints; None: the base model."""
        if checkpoint is None and self.checkpoints:
            alone: dict[str, Any] = {"ckpt_dir": None, "sft_type": None, "load_args_from_ckpt_dir": False}
            return dataclasses.replace(self.first, **alone)
        given: dict[str, Any] = {}
        for item in fields(InferArguments):
            value = getattr(self, item.name, None)
            if item.init and item.name not in NOT_HERE and value not in (None, []):
                given[item.name] = value
        given |= {"eval_human": None, "stream": False, "show_dataset_sample": self.num_samples}
        return InferArguments(ckpt_dir=None if checkpoint is None else str(checkpoint), **given)

    def result_folder(self) -> Path:
        if self.output_dir is not None:
            return Path(self.output_dir)
        if not self.checkpoints:
            return Path(f"eval-{self.first.display_name()}")
        return (self.checkpoints[0].parent if self.all_checkpoints else self.checkpoints[0]) / "eval"

    def names(self) -> dict[str, Path | None]:
        """Models to evaluate, in order, by their name in the table and in folders."""
        found: dict[str, Path | None] = {}
        if self.with_base or not self.checkpoints:
            found[BASE] = None
        last = [folder.resolve().name for folder in self.checkpoints]
        for number, folder in enumerate(self.checkpoints):
            name = last[number]
            if last.count(name) > 1:
                name = f"{folder.resolve().parent.name}-{name}"
            found[name if name not in found else f"{name}-{number}"] = folder
        return found


def _of_run(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise CheckpointError(f"There is no run folder {folder}. Look below output/.")
    found = numbered_checkpoints(folder)
    if not found:
        raise CheckpointError(f"{folder} has no checkpoint-N: give a run folder.")
    for path in found:
        checkpoint_kind(path)
    return found
