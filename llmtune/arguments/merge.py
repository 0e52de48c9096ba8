"""The arguments of `llmtune merge`, and those shared with `llmtune export`: checkpoint, base, output folder."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from llmtune.arguments.checks import forget_class_names
from llmtune.arguments.fields import Given, settle_texts
from llmtune.arguments.infer import InferArguments
from llmtune.arguments.inheritance import check_strange_paths
from llmtune.arguments.rules import Problems
from llmtune.checkpoint import base_of, checkpoint_kind, checkpoint_of, read_settings

OF_EXPORT = ("quant_method", "quantization_bit")
"""Here they describe the folder to write; in InferArguments, the checkpoint."""


@dataclass(kw_only=True)
class CheckpointArguments(Given):
    """Checkpoint."""

    ckpt_dir: str | None = None
    """Checkpoint folder of a run, or any PEFT or transformers folder. Also spelled --lora_model."""
    model_type: str | None = None
    """Key of the model (`llmtune list models`). Default: from the checkpoint, or from the base's files."""
    model_id_or_path: str | None = None
    """Folder or hub id of the base. Default: from the checkpoint. Also spelled --base_model."""
    model_revision: str | None = None
    """Branch, tag or commit of the base on the hub. Default: as in training."""
    tokenizer_id_or_path: str | None = None
    """Folder of the tokenizer. Default: the checkpoint's, or the base's. Also spelled --tokenizer_path."""
    template_type: str | None = None
    """Key of the chat template (`llmtune list templates`). Default: as in training."""
    dtype: Literal["bf16", "fp16", "fp32"] | None = None
    """Data type of the weights to write. Default: as in training, or the base's."""
    max_shard_size: str = "2GB"
    """Max size of a weight file; about as much memory is used at a time."""
    output_dir: str | None = None
    """Folder to write; must not exist. Default: next to the checkpoint, named after it and the operation."""
    use_hf: bool | None = None
    """Use Hugging Face instead of ModelScope, for downloads and pushing. Default: environment variable USE_HF."""
    hub_token: str | None = None
    """Hub token. Default: MODELSCOPE_API_TOKEN or HF_TOKEN from the environment. Never written to a file."""
    cache_dir: str | None = None
    """Download folder. Default: the hub client's own."""
    trust_remote_code: bool = False
    """Run Python code that ships with the checkpoint."""
    allow_pickle: bool = False
    """Load pickle weights (.bin) where there are no safetensors. Pickle files can run arbitrary code."""
    custom_register_path: str | None = None
    """Python file with your own register_model, register_dataset and register_template calls."""
    ignore_args_error: bool = False
    """Warn about unknown flags instead of stopping."""

    def checkpoint(self) -> Path:
        assert self.ckpt_dir is not None
        return Path(self.ckpt_dir)

    def infer_arguments(self, **changes: Any) -> InferArguments:
        """The arguments that load the checkpoint; those not given are read from it."""
        names = {field.name for field in fields(InferArguments) if field.init} - set(OF_EXPORT)
        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name in names}
        given = {name: value for name, value in given.items() if value not in (None, [])}
        folder = self.checkpoint()
        if "model_id_or_path" not in given and checkpoint_kind(folder) == "lora" and not read_settings(folder):
            base = {"model_id_or_path": base_of(folder)}
            check_strange_paths(base, base, folder)
            given |= base
        return InferArguments(**(given | {"eval_human": True} | changes))

    def check_checkpoint(self, problems: Problems, command: str) -> None:
        settle_texts(self)
        problems.need(self.ckpt_dir is not None, f"llmtune {command} needs --ckpt_dir FOLDER (or --lora_model FOLDER).")
        if self.ckpt_dir is not None:
            self.ckpt_dir = str(checkpoint_of(Path(self.ckpt_dir)))
            checkpoint_kind(self.checkpoint())
        forget_class_names(self, has_folder=True)


@dataclass(kw_only=True)
class MergeArguments(CheckpointArguments):
    """Merging."""

    resize_emb: bool = False
    """First resize the base's embeddings to the tokenizer's length, as MedicalGPT's trainers do."""
    hf_hub_model_id: str | None = None
    """Push the merged folder to this Hugging Face repository."""

    def __post_init__(self) -> None:
        problems = Problems()
        self.check_checkpoint(problems, "merge")
        problems.raise_if_any()
        self.infer_arguments()
