"""The output of `llmtune serve` and `llmtune web` with `--dry_run true`."""

from __future__ import annotations

from collections.abc import Mapping

from llmtune.arguments.service import BASE_NAME, ServeArguments, ServiceArguments
from llmtune.cli import dry_run
from llmtune.run.model_files import find_model


def show_serve(args: ServeArguments) -> None:
    """Print what would be served, where, and within which limits."""
    address = f"http://{args.host}:{args.port}/v1, {'with' if args.api_key else 'no'} API key"
    limits = {
        "batch": f"up to {args.max_batch_size} generations, {args.max_queue} more in the queue",
        "per request": f"{args.max_body_size:,} bytes, {args.max_n} generations, {args.request_timeout:g} seconds",
    }
    show_service(args, {"address": address}, limits)


def show_service(args: ServiceArguments, first: Mapping[str, str], last: Mapping[str, str] | None = None) -> None:
    """Print which models would be served. `first` and `last`: additional lines.

    Raises:
        LlmtuneError: Whatever would stop it before weights are loaded, as far as local files show it.
    """
    lacks: list[str] = []
    model = "in the checkpoint"
    if args.ckpt_dir is None or args.sft_type != "full":
        model = find_model(args, bits=args.quantization_bit, sft_type=None, lacks=lacks).text
    has_base = args.ckpt_dir is not None and args.sft_type != "full"
    names = [args.main_name, *([BASE_NAME] if has_base else []), *args.adapter_args]
    rows = {
        **first,
        "models": ", ".join(names),
        "checkpoint": f"{args.ckpt_dir}, {args.sft_type}" if args.ckpt_dir else "none: the base model",
        "model": f"{args.display_name()}, {model}",
        "template": str(args.template_type),
        "dtype": dry_run.dtype_text(args),
        "quantisation": dry_run.quantization_text(args) if args.quantization_bit else "",
        **(last or {}),
    }
    notes = [f"missing here: {text}" for text in lacks]
    if args.inherited:
        notes.append(f"from the checkpoint: {args.inherited_text()}.")
    dry_run.show({name: text for name, text in rows.items() if text}, notes)
