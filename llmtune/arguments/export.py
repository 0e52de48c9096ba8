"""The arguments of `export()`, and of `llmtune merge`: checkpoint, base, output folder."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from llmtune.arguments.checks import forget_class_names
from llmtune.arguments.fields import Given, Problems, at_least, check_rules, limited, only, settle_texts, unused_flags
from llmtune.arguments.groups import HubPushArguments
from llmtune.arguments.infer import InferArguments
from llmtune.arguments.inheritance import check_strange_paths
from llmtune.checkpoint import base_of, checkpoint_kind, checkpoint_of, read_settings

OF_GPTQ, OF_GGUF = only(quant_method="gptq"), only(to="gguf")
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


@dataclass(kw_only=True)
class ExportArguments(HubPushArguments, CheckpointArguments):
    """Export."""

    merge_lora: bool = False
    """Merge the adapter into its base; quantising and converting do so anyway."""
    quant_method: Literal["gptq", "bnb"] | None = None
    """Quantise the weights: gptq (calibrated on data), or bnb (bitsandbytes, no data)."""
    quantization_bit: Literal[4, 8] | None = None
    """Bits per quantised weight. Default: 4."""
    calibration_dataset: list[str] = field(default_factory=list, metadata={"only": OF_GPTQ})
    """Datasets to calibrate GPTQ on. Default: the checkpoint's training datasets."""
    num_calibration_samples: int = limited(128, at_least(1), only=OF_GPTQ)
    """Rows to calibrate GPTQ on."""
    group_size: int = limited(128, only=OF_GPTQ)
    """GPTQ: weights per quantisation group; -1: a whole row."""
    to: Literal["gguf"] | None = None
    """Convert to GGUF, for llama.cpp and Ollama. Also spelled --format."""
    gguf_type: Literal["f32", "f16", "bf16", "q8_0"] = limited("f16", only=OF_GGUF)
    """Data type of the GGUF file."""
    llama_cpp: str | None = limited(None, only=OF_GGUF)
    """llama.cpp folder, to convert with its own script; for models that llmtune does not convert itself."""
    system: str | None = limited(None, only=OF_GGUF)
    """System prompt of the Ollama Modelfile. Default: as in training, or the template's."""

    def __post_init__(self) -> None:
        problems = Problems()
        self.check_checkpoint(problems, "export")
        wanted = self.merge_lora or self.quant_method or self.to or self.push_to_hub
        problems.need(
            bool(wanted),
            "Choose what to export: --merge_lora true, --quant_method gptq|bnb, --to gguf, or --push_to_hub true.",
        )
        problems.need(
            not (self.quant_method and self.to),
            "--quant_method and --to gguf exclude each other: GGUF files are quantised by --gguf_type.",
        )
        problems.need(
            self.quantization_bit is None or self.quant_method is not None,
            f"--quantization_bit {self.quantization_bit} needs --quant_method gptq or bnb.",
        )
        check_rules(self, problems)
        problems.need(self.group_size == -1 or self.group_size >= 8, "--group_size must be -1, or 8 or more.")
        problems.raise_if_any()
        self.inferred = self.infer_arguments()
        to = f"--quant_method {self.quant_method}" if self.quant_method else f"--to {self.to}"
        problems.need(
            not (self.inferred.scores and (self.quant_method or self.to)),
            f"{to} writes models that generate, and {self.ckpt_dir} is a reward model: use --merge_lora true, or load "
            "it with --quantization_bit.",
        )
        problems.raise_if_any()

    @property
    def bits(self) -> int:
        return self.quantization_bit or 4

    def unused_flags(self) -> list[str]:
        """Flags that were given and have no effect."""
        merged = self.merge_lora and checkpoint_kind(self.checkpoint()) == "full"
        return [*unused_flags(self), *(["--merge_lora"] if merged else [])]

    def target(self) -> Path:
        """The output folder."""
        if self.output_dir is not None:
            return Path(self.output_dir)
        checkpoint = self.checkpoint().resolve()
        what = "merged"
        if self.quant_method:
            what = f"{self.quant_method}-int{self.bits}"
        elif self.to:
            what = f"{self.to}-{self.gguf_type}"
        return checkpoint.with_name(f"{checkpoint.name}-{what}")
