"""`llmtune export`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from llmtune.arguments.export import ExportArguments
from llmtune.arguments.parser import parse
from llmtune.cli.dry_run import DryRunArguments, show_export

SUMMARY = """
Export a checkpoint: merged weights, quantised weights, a GGUF file with an Ollama Modelfile, or a hub repository. A
LoRA checkpoint is merged first.
  llmtune export --ckpt_dir output/llmtune-tiny/v0-.../checkpoint-50 --merge_lora true
  llmtune export --ckpt_dir ... --quant_method gptq --quantization_bit 4 --calibration_dataset alpaca-zh
  llmtune export --ckpt_dir ... --to gguf --gguf_type q8_0
"""


@dataclass(kw_only=True)
class ExportCommand(DryRunArguments, ExportArguments):
    """Export."""


ARGUMENTS = ExportCommand


def run(argv: Sequence[str]) -> int:
    args = parse(ExportCommand, argv, command="export", summary=SUMMARY)
    if args.dry_run:
        show_export(args)
        return 0
    from llmtune.exporting.export import export

    sys.stdout.write(f"{export(args)}\n")
    return 0
