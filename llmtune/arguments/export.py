"""The arguments of `export()` and `llmtune export`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from llmtune.arguments.groups import HubPushArguments
from llmtune.arguments.merge import CheckpointArguments
from llmtune.arguments.rules import Problems
from llmtune.checkpoint import checkpoint_kind

OF_GPTQ = {"calibration_dataset": [], "num_calibration_samples": 128, "group_size": 128}
OF_GGUF = {"gguf_type": "f16", "llama_cpp": None}


@dataclass(kw_only=True)
class ExportArguments(HubPushArguments, CheckpointArguments):
    """Export."""

    merge_lora: bool = False
    """Merge the adapter into its base; quantising and converting do so anyway."""
    quant_method: Literal["gptq", "bnb"] | None = None
    """Quantise the weights: gptq (calibrated on data), or bnb (bitsandbytes, no data)."""
    quantization_bit: Literal[4, 8] | None = None
    """Bits per quantised weight. Default: 4."""
    calibration_dataset: list[str] = field(default_factory=list)
    """Datasets to calibrate GPTQ on. Default: the checkpoint's training datasets."""
    num_calibration_samples: int = 128
    """Rows to calibrate GPTQ on."""
    group_size: int = 128
    """GPTQ: weights per quantisation group; -1: a whole row."""
    to: Literal["gguf"] | None = None
    """Convert to GGUF, for llama.cpp and Ollama. Also spelled --format."""
    gguf_type: Literal["f32", "f16", "bf16", "q8_0"] = "f16"
    """Data type of the GGUF file."""
    llama_cpp: str | None = None
    """llama.cpp folder, to convert with its own script; for models that llmtune does not convert itself."""
    system: str | None = None
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
        problems.need(self.num_calibration_samples >= 1, "--num_calibration_samples must be 1 or more.")
        problems.need(self.group_size == -1 or self.group_size >= 8, "--group_size must be -1, or 8 or more.")
        problems.raise_if_any()
        self.inferred = self.infer_arguments()

    @property
    def bits(self) -> int:
        return self.quantization_bit or 4

    def unused_flags(self) -> list[str]:
        """Flags that were given and have no effect."""
        found = []
        for owner, flags in ((self.quant_method == "gptq", OF_GPTQ), (self.to == "gguf", OF_GGUF)):
            found += [f"--{name}" for name, default in flags.items() if not owner and getattr(self, name) != default]
        if not self.push_to_hub and self.hub_model_id is not None:
            found.append("--hub_model_id")
        if self.to is None and self.system is not None:
            found.append("--system")
        if self.merge_lora and checkpoint_kind(self.checkpoint()) == "full":
            found.append("--merge_lora")
        return found

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
