"""The output of `llmtune infer --dry_run true`."""

from __future__ import annotations

from pathlib import Path

from llmtune.arguments.infer import InferArguments
from llmtune.cli import dry_run
from llmtune.run.model_files import find_model


def show_infer(args: InferArguments) -> None:
    """Print which model would generate, and for what.

    Raises:
        LlmtuneError: Whatever would stop it before weights are loaded, as far as local files show it.
    """
    lacks: list[str] = []
    whole = args.ckpt_dir is not None and args.sft_type == "full"
    model = "in the checkpoint"
    if not whole:
        model = find_model(args, bits=args.quantization_bit, sft_type=None, lacks=lacks).text
    rows = {
        "checkpoint": f"{args.ckpt_dir}, {args.sft_type}" if args.ckpt_dir else "none: the base model",
        "model": f"{args.display_name()}, {model}",
        "template": str(args.template_type),
        "dtype": dry_run.dtype_text(args),
        "quantisation": dry_run.quantization_text(args) if args.quantization_bit else "",
        "merged": f"{Path(str(args.ckpt_dir)).name}-merged, first" if args.merge_lora_and_save else "",
        **({"input": "chat in the terminal"} if args.eval_human else dry_run.data_rows(args, args)),
        "generation": f"up to {args.max_new_tokens:,} tokens, {_sampling(args)}",
    }
    if not args.eval_human:
        number = "all" if args.show_dataset_sample == -1 else f"the first {args.show_dataset_sample}"
        rows["rows"] = f"{number} of validation, batch size {args.infer_batch_size}"
        rows["output"] = str(Path(args.result_dir or args.ckpt_dir or ".").resolve() / "infer_result_TIME.jsonl")
    notes = [f"missing here: {text}" for text in lacks]
    if args.inherited:
        notes.append(f"from the checkpoint: {args.inherited_text()}.")
    if args.unused:
        notes.append(f"no effect on generation: {', '.join(args.unused)}.")
    dry_run.show({name: text for name, text in rows.items() if text}, notes)


def _sampling(args: InferArguments) -> str:
    if not args.do_sample or args.temperature == 0:
        return "greedy"
    return f"temperature {args.temperature:g}, top_k {args.top_k}, top_p {args.top_p:g}"
