"""The arguments of `infer()` and `llmtune infer`. Arguments not given are read from the checkpoint's sft_args.json."""

from __future__ import annotations

import logging
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, get_type_hints

from llmtune.arguments.checks import fill_model
from llmtune.arguments.fields import Problems, Rule, at_least, check_rules, limited, settle_texts
from llmtune.arguments.groups import (
    AttentionArguments,
    DataArguments,
    GenerationArguments,
    ModelArguments,
    PromptArguments,
    QuantizationArguments,
    RopeArguments,
    SamplingArguments,
    SftType,
)
from llmtune.arguments.inheritance import WITHOUT, check_register_file, check_saved_types, check_strange_paths
from llmtune.checkpoint import adapter_kind, checkpoint_of, is_reward, read_settings
from llmtune.errors import UsageError
from llmtune.utils.logging import get_logger, log_once

INHERITED = [
    *("model_type", "model_id_or_path", "model_revision", "tokenizer_id_or_path", "template_type"),
    "tool_format",
    *("dtype", "system", "chat_template_kwargs", "use_hf", "cache_dir"),
    *("quantization_bit", "bnb_4bit_comp_dtype", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "quant_method"),
    *("max_length", "max_pixels", "special_tokens_in_text"),
]
INHERITED_DATA = [
    *("dataset", "val_dataset", "dataset_test_ratio", "dataset_seed"),
    *("train_dataset_sample", "val_dataset_sample", "model_name", "model_author"),
]
WITHOUT_EFFECT = [
    *("loss_on", "truncation_strategy"),  # there is no loss; a prompt is always truncated at its start
]
OF_GENERATION = [item.name for item in fields(GenerationArguments)]
OF_ROPE = ["rope_scaling", "rope_factor"]
SFT_DEFAULTS: dict[str, Any] = {
    "sft_type": ModelArguments.sft_type,
    "special_tokens_in_text": PromptArguments.special_tokens_in_text,
    **{
        name: getattr(DataArguments, name)
        for name in ("dataset_test_ratio", "dataset_seed", "train_dataset_sample", "max_length")
    },
}
"""Defaults if neither flags nor checkpoint set a value. Unset in the class, to tell what was given."""
OF_4_BITS = ["bnb_4bit_comp_dtype", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant"]


@dataclass(kw_only=True)
class LoadArguments(
    RopeArguments, AttentionArguments, QuantizationArguments, SamplingArguments, PromptArguments, ModelArguments
):
    """Checkpoint."""

    sft_type: SftType = None  # type: ignore[assignment]
    """Kind of fine-tuning. Default: from the checkpoint."""
    special_tokens_in_text: Literal["text", "special"] = None  # type: ignore[assignment]
    """How the spelling of a control token inside the data is encoded. Default: as in training."""
    ckpt_dir: str | None = None
    """Checkpoint folder of a run. Its training settings are read from there; flags override them."""
    load_args_from_ckpt_dir: bool = True
    """Read the training settings from the checkpoint's sft_args.json."""
    ignore_args_error: bool = False
    """Warn about unknown flags instead of stopping."""
    device: str | None = None
    """Device: cpu, cuda, cuda:1. Default: the first GPU, else the CPU."""
    inherited: list[str] = field(default_factory=list, init=False)
    unused: list[str] = field(default_factory=list, init=False)

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            lambda args: args.rope_scaling is None or args.rope_factor is not None,
            "--rope_scaling {rope_scaling} needs --rope_factor.",
        ),
    )

    def __post_init__(self) -> None:
        settle_texts(self)
        problems = Problems()
        if self.ckpt_dir is not None:
            self.ckpt_dir = str(checkpoint_of(Path(self.ckpt_dir)))
        given = [name for name in self._without_effect() if not self._is_default(name)]
        if self.ckpt_dir is not None:
            kind: Any = adapter_kind(Path(self.ckpt_dir))
            wrong = f"--sft_type {self.sft_type}: {self.ckpt_dir} is a {kind} checkpoint."
            problems.need(self.sft_type in (None, kind), wrong)
            self.sft_type = kind
            if self.load_args_from_ckpt_dir:
                self._inherit(Path(self.ckpt_dir))
        self.unused = [f"--{name}" for name in given if name not in OF_4_BITS or self.quantization_bit != 4]
        self._fill()
        fill_model(self, problems)
        check_rules(self, problems)
        problems.raise_if_any()

    @property
    def scores(self) -> bool:
        """Whether the checkpoint is a reward model."""
        return self.ckpt_dir is not None and is_reward(Path(self.ckpt_dir))

    def _without_effect(self) -> list[str]:
        """Flags that inference may make no use of."""
        own = {item.name for item in fields(self)}
        return [*OF_4_BITS, *(name for name in OF_GENERATION if self.scores and name in own)]

    def _wanted(self) -> list[str]:
        """Settings that are taken from the checkpoint."""
        return INHERITED

    def tell(self, about: str = "generation") -> None:
        """Log the settings from the checkpoint, and the flags without effect."""
        log = get_logger()
        for flag in self.unused:
            log.warning("%s has no effect on %s.", flag, about)
        if self.inherited:
            log.info("From the checkpoint: %s.", self.inherited_text())

    def inherited_text(self) -> str:
        """The settings that the checkpoint changes, with their values."""
        return ", ".join(f"{name} {_short(getattr(self, name))}" for name in self.inherited)

    def _inherit(self, folder: Path) -> None:
        """Inherit arguments that were not given from the run that wrote the checkpoint."""
        saved = read_settings(folder)
        if saved.get("fp8_base"):
            text = f"{folder} was trained on a base in fp8 (--fp8_base); here, its base is not rounded."
            log_once(text, level=logging.INFO)
        rope = () if self.sft_type == "full" else OF_ROPE  # whole weights have it in their config.json
        own = {item.name for item in fields(self)}
        names = [name for name in (*self._wanted(), *rope) if name in own]
        names = [name for name in names if self._is_default(name) and saved.get(name) not in (None, [])]
        names = [name for name in names if not self._has_it_inside(name, folder)]
        check_register_file(saved, self.custom_register_path, folder, advice=WITHOUT)
        check_saved_types(saved, get_type_hints(type(self)), names, folder)
        check_strange_paths(saved, names, folder)
        for name in names:
            if saved[name] not in (getattr(self, name), SFT_DEFAULTS.get(name)):
                self.inherited.append(name)
            setattr(self, name, saved[name])

    def _has_it_inside(self, name: str, folder: Path) -> bool:
        """Whether the checkpoint itself contains this model or tokenizer."""
        if name == "model_id_or_path":
            return self.sft_type == "full"
        return name == "tokenizer_id_or_path" and any(folder.glob("tokenizer*"))

    def _is_default(self, name: str) -> bool:
        default = type(self).__dataclass_fields__[name].default
        return bool(getattr(self, name) == ([] if default is MISSING else default))

    def _fill(self) -> None:
        """Set what neither flags nor checkpoint give to the defaults of sft."""
        for name, value in SFT_DEFAULTS.items():
            if getattr(self, name, value) is None:
                setattr(self, name, value)


@dataclass(kw_only=True)
class InferArguments(GenerationArguments, DataArguments, LoadArguments):
    """Inference."""

    SYNONYMS = {"num_samples": "show_dataset_sample", "eval_batch_size": "infer_batch_size", "output_dir": "result_dir"}  # noqa: RUF012
    """Names of `llmtune eval` for the same arguments."""

    dataset_test_ratio: float = None  # type: ignore[assignment]
    """Fraction of each dataset that was split off for validation. Default: as in training."""
    dataset_seed: int = None  # type: ignore[assignment]
    """Seed for sampling and splitting rows. Default: as in training."""
    train_dataset_sample: int = None  # type: ignore[assignment]
    """Number of training rows that were sampled. Default: as in training."""
    max_length: int = None  # type: ignore[assignment]
    """Max prompt tokens; longer prompts lose their start; -1: no limit. Default: as in training."""
    eval_human: bool | None = None
    """Chat in the terminal instead of generating for a dataset. Default: true if there is no dataset."""
    show_dataset_sample: int = limited(None, at_least(0, also=-1, meaning="all"))
    """Validation rows to generate for, from the first; -1: all. Default: 20; a reward model scores all."""
    stream: bool = True
    """Stream the generation to the terminal: in a chat; on a dataset with --infer_batch_size 1, or where it is given.
    Also spelled --use_streamer."""
    infer_batch_size: int | None = limited(None, at_least(1))
    """Rows of a dataset to generate at a time; a row that ends makes room for the next. Default: as many as memory
    allows."""
    merge_lora_and_save: bool = False
    """First merge the adapter into the weights and write <ckpt_dir>-merged."""
    save_generation_config: bool = False
    """Save the generation settings in the checkpoint. Also spelled --overwrite_generation_config."""
    result_dir: str | None = None
    """Folder for infer_result_<time>.jsonl. Default: the checkpoint, else the current folder."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            lambda args: not (args.merge_lora_and_save and args.ckpt_dir is None),
            "--merge_lora_and_save needs --ckpt_dir.",
        ),
    )

    def _without_effect(self) -> list[str]:
        whole = ["val_dataset_sample"] if self.val_dataset else []  # val_dataset is answered whole
        written = ["stream", "save_generation_config"] if self.scores else []
        return [*super()._without_effect(), *WITHOUT_EFFECT, *whole, *written]

    def _wanted(self) -> list[str]:
        wants_data = not self.dataset and not self.val_dataset and not self.eval_human
        return [*super()._wanted(), *(INHERITED_DATA if wants_data else ())]

    def _fill(self) -> None:
        if self.scores and self.dataset and self.dataset_test_ratio is None:
            self.dataset_test_ratio = 1  # a file of responses is scored whole; of the run's own data, what it held out
        super()._fill()
        if self.show_dataset_sample is None:
            self.show_dataset_sample = -1 if self.scores else 20
        if self.eval_human is None:
            self.eval_human = not (self.dataset or self.val_dataset)

    @property
    def streams_rows(self) -> bool:
        """Whether the rows of a dataset are generated one by one, and printed token by token."""
        size = 1 if self.infer_batch_size is None and "stream" in self.given else self.infer_batch_size
        return self.stream and size == 1

    def check_scoring(self) -> None:
        """Refuse what a reward model cannot do.

        Raises:
            UsageError: It is asked to chat, which is the default without data.
        """
        if self.scores and self.eval_human:
            raise UsageError(
                f"{self.ckpt_dir} is a reward model: it scores responses, and writes none. Give rows with --dataset "
                "FILE, and leave out --eval_human."
            )


def _short(value: Any) -> str:
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return repr(text) if " " in text and isinstance(value, str) else text
