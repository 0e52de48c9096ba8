"""What a model's configuration says against a run, found before any weights are loaded."""

from __future__ import annotations

from pathlib import Path

from llmtune.arguments.sft import SftArguments
from llmtune.models.ports import native_config
from llmtune.models.prequantized import check_prequantized
from llmtune.models.rope import rope_factor

__all__ = ["check_model_files"]


def check_model_files(args: SftArguments, folder: Path) -> None:
    """Look into the folder of the model; fills in the factor of `--rope_scaling`.

    Raises:
        LlmtuneError: The model cannot be trained in this way.
    """
    check_prequantized(folder, sft_type=args.sft_type, quantization_bit=args.quantization_bit)
    if args.rope_scaling is not None:
        config = native_config(folder, trust_remote_code=args.trust_remote_code)
        args.rope_factor = rope_factor(config, args.rope_scaling, args.rope_factor, args.max_length)
