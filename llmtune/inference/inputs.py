"""Rows that an inference answers or scores, the file of its results, and the merge before it."""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmtune.arguments.infer import InferArguments
from llmtune.arguments.stages import stage_arguments
from llmtune.checkpoint import checkpoint_kind, stage_of
from llmtune.data.canonical import conversation_of, from_record
from llmtune.data.mixing import get_dataset
from llmtune.errors import DataError
from llmtune.merging.merge import merge_checkpoint
from llmtune.types import Conversation, RowKind
from llmtune.utils.files import ensure_writable_folder
from llmtune.utils.logging import get_logger


def rows_to_answer(args: InferArguments, flag: str = "--show_dataset_sample") -> list[Conversation]:
    """Return the rows to answer: the whole val_dataset, else the part that training split off."""
    return list(map(_answered, chosen_records(args, flag, _kind_of_run(args))))


def _kind_of_run(args: InferArguments) -> RowKind:
    """Return the kind of the rows: that of training for the run's own, since the split depends on the rows."""
    if args.ckpt_dir is None or not {"dataset", "val_dataset"} & set(args.inherited):
        return "conversations"
    return stage_arguments(stage_of(Path(args.ckpt_dir))).KIND


def _answered(record: Mapping[str, Any]) -> Conversation:
    """Return a row with its response, the best of a comparison; a response that is labelled bad is no reference."""
    answers: list[dict[str, Any]] = record.get("answers") or []
    is_bad = any(answer["label"] is False for answer in answers)
    return from_record(record) if is_bad else conversation_of(record)


def chosen_records(args: InferArguments, flag: str, kind: RowKind) -> Iterator[dict[str, Any]]:
    """Yield the rows that the flags choose, as records: the whole val_dataset, else the part that training split off.

    Raises:
        DataError: There are none.
    """
    options: dict[str, Any] = {
        "kind": kind,
        "dataset_seed": args.dataset_seed,
        "strict": args.strict,
        "model_name": args.model_name,
        "model_author": args.model_author,
        "overwrite_cache": args.overwrite_cache,
        "use_hf": args.use_hf,
        "hub_token": args.hub_token,
        "cache_dir": args.cache_dir,
        "dataset_num_proc": args.dataset_num_proc,
    }
    whole = args.val_dataset or (args.dataset if args.dataset_test_ratio == 1 else [])
    if whole:
        chosen, _ = get_dataset(whole, dataset_test_ratio=0, need_answer=False, **options)
    else:
        _, chosen = get_dataset(
            args.dataset,
            dataset_test_ratio=args.dataset_test_ratio,
            train_dataset_sample=args.train_dataset_sample,
            val_dataset_sample=args.val_dataset_sample,
            **options,
        )
    if chosen is None:
        raise DataError(
            "These datasets have no validation rows to answer. Give rows with --val_dataset, or answer all of "
            "--dataset with --dataset_test_ratio 1."
        )
    count = len(chosen) if args.show_dataset_sample < 0 else min(args.show_dataset_sample, len(chosen))
    if count < len(chosen):
        get_logger().info(f"Answering the first {count:,} of {len(chosen):,} rows ({flag} -1: all).")
    return (chosen[index] for index in range(count))


def result_file_of(args: InferArguments) -> Path:
    """Return the file for the results, which does not exist yet."""
    folder = Path(args.result_dir or args.ckpt_dir or ".")
    ensure_writable_folder(folder, flag="--result_dir")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    names = itertools.chain([stamp], (f"{stamp}-{number}" for number in itertools.count(1)))
    return next(file for name in names if not (file := folder / f"infer_result_{name}.jsonl").exists())


def merged_first(args: InferArguments) -> InferArguments:
    """Merge the adapter, and return the arguments that load the merged folder."""
    assert args.ckpt_dir is not None
    checkpoint = Path(args.ckpt_dir)
    if checkpoint_kind(checkpoint) != "lora":
        get_logger().warning("--merge_lora_and_save has no effect: %s holds full weights.", checkpoint)
        return args
    merged = merge_checkpoint(args)
    get_logger().info("Merged model: %s", merged)
    in_config: dict[str, Any] = {"rope_scaling": None, "rope_factor": None}
    place = os.fspath(merged)
    return dataclasses.replace(args, ckpt_dir=place, sft_type="full", load_args_from_ckpt_dir=False, **in_config)
