"""`llmtune export`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from llmtune.arguments.export import ExportArguments
from llmtune.arguments.parser import parse
from llmtune.cli import dry_run
from llmtune.cli.dry_run import DryRunArguments
from llmtune.run.model_files import find_model

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
        _show(args)
        return 0
    from llmtune.exporting.export import export

    sys.stdout.write(f"{export(args)}\n")
    return 0


def _show(args: ExportArguments) -> None:
    lacks: list[str] = []
    found = args.inferred
    rows = {"checkpoint": f"{args.checkpoint().resolve()}, {found.sft_type}", "template": str(found.template_type)}
    if found.sft_type != "full":
        rows["base"] = f"{found.display_name()}, {find_model(found, bits=0, sft_type=None, lacks=lacks).text}"
        rows["merged"] = "first" if args.quant_method or args.to else "yes" if args.merge_lora else "no"
    if args.quant_method:
        rows["quantised"] = f"{args.bits} bits, {args.quant_method}"
    if args.to:
        rows["converted"] = f"{args.to}, {args.gguf_type}"
    if args.push_to_hub:
        rows["pushed to"] = args.hub_model_id or args.target().name
    rows["output"] = str(args.target().resolve())
    notes = [f"missing here: {text}" for text in lacks]
    if unused := args.unused_flags():
        notes.append(f"no effect here: {', '.join(unused)}.")
    dry_run.show(rows, notes)
