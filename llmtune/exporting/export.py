"""export() and merge(): turn a checkpoint into a folder for other programs."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llmtune.arguments.export import CheckpointArguments, ExportArguments, MergeArguments
from llmtune.checkpoint import checkpoint_kind, copy_settings
from llmtune.errors import OutputError, UsageError
from llmtune.hub.push import Destination, destination, push_folder
from llmtune.merging.merge import merge_checkpoint
from llmtune.run.model_card import card_of, write_card
from llmtune.utils.files import atomic_folder
from llmtune.utils.logging import get_logger, quiet_libraries


def merge(args: MergeArguments) -> Path:
    """Merge an adapter into its base.

    Returns:
        The folder.

    Raises:
        LlmtuneError: See `merge_checkpoint`.
    """
    quiet_libraries()
    where = None
    if args.hf_hub_model_id:
        where = destination(args.hf_hub_model_id, use_hf_hub=True, token=args.hub_token)
    target = None if args.output_dir is None else Path(args.output_dir)
    folder = merge_checkpoint(
        args.infer_arguments(), target, max_shard_size=args.max_shard_size, resize_embeddings=args.resize_emb
    )
    if where is not None:
        write_card(folder, args.checkpoint(), _settings(args), ["merged"])
        _push(folder, where)
    return folder


def export(args: ExportArguments) -> Path:
    """Merge, quantise, convert and push, as the arguments say, in this order.

    Returns:
        The written folder; that of the checkpoint, where it is only pushed.

    Raises:
        LlmtuneError: Any user error: see `llmtune.errors`. Nothing is written then.
    """
    quiet_libraries()
    target = args.target()
    writes = bool(args.quant_method or args.to or (args.merge_lora and checkpoint_kind(args.checkpoint()) == "lora"))
    if writes and target.exists():
        raise OutputError(f"{target} exists already. Remove it, or choose another place with --output_dir.")
    if not writes and not args.push_to_hub:
        raise UsageError(f"{args.checkpoint()} holds full weights: there is nothing to merge. Use it as it is.")
    for flag in args.unused_flags():
        get_logger().warning("%s has no effect here.", flag)
    _check_first(args)
    where = None
    if args.push_to_hub:  # a wrong token is found before the work, not after an hour
        name = args.hub_model_id or target.name
        where = destination(name, use_hf_hub=args.use_hf, token=args.hub_token, private=args.hub_private_repo)
    if writes:
        _write(args, target)
    folder = target if writes else args.checkpoint()
    if where is not None:
        _push(folder, where, card_of(folder, _settings(args)))
    get_logger().info("Exported: %s", folder)
    return folder


def _check_first(args: ExportArguments) -> None:
    """Check now for errors that would otherwise occur after minutes of merging."""
    if args.quant_method:
        from llmtune.exporting.quantize import need_quantizer

        need_quantizer(args)
    if args.to == "gguf":
        from llmtune.exporting.gguf_file import need_converter

        need_converter(args)


def _settings(args: CheckpointArguments) -> dict[str, Any]:
    return vars(args.infer_arguments(eval_human=None))


def _write(args: ExportArguments, target: Path) -> None:
    if not (args.quant_method or args.to):
        merge_checkpoint(args.inferred, target, max_shard_size=args.max_shard_size)
        write_card(target, args.checkpoint(), _settings(args), ["merged"])
        return
    done = ["merged"] if checkpoint_kind(args.checkpoint()) == "lora" else []
    with _whole(args, target) as whole, atomic_folder(target) as folder:
        if args.quant_method:
            from llmtune.exporting.quantize import quantize

            report = quantize(args, whole, folder)
            done.append(f"quantised to {report['bits']} bits with {args.quant_method}")
            copy_settings(whole, folder, quantization_bit=0)
        else:
            from llmtune.exporting.gguf_file import write_gguf

            write_gguf(args, whole, folder)
            done.append(f"converted to GGUF, {args.gguf_type}")
        write_card(folder, args.checkpoint(), _settings(args), done)


@contextlib.contextmanager
def _whole(args: ExportArguments, target: Path) -> Iterator[Path]:
    """Yield the folder of full weights: the checkpoint's own, or a temporary merge beside the target."""
    if checkpoint_kind(args.checkpoint()) == "full":
        yield args.checkpoint()
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-merged-", dir=target.parent) as place:
        yield merge_checkpoint(args.inferred, Path(place) / "merged", max_shard_size=args.max_shard_size)


def _push(folder: Path, where: Destination, card: Callable[[Path], None] | None = None) -> None:
    push_folder(folder, where, message=f"{folder.name}, by llmtune export", write_card=card)
    get_logger().info("Pushed to %s on %s.", where.repo.repo_id, where.hub.name)
