"""Quantise full weights with GPTQ or bitsandbytes, check that the result loads and generates, and measure its loss."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from llmtune.arguments.export import ExportArguments
from llmtune.arguments.infer import InferArguments
from llmtune.data.canonical import from_record
from llmtune.data.mixing import get_dataset
from llmtune.errors import CheckpointError, DataError, LlmtuneError, MissingPackageError, UsageError, one_line
from llmtune.evaluation.results import Journal
from llmtune.evaluation.scores import loss_scores
from llmtune.inference.engine import Engine
from llmtune.inference.inputs import rows_to_answer
from llmtune.inference.load import load_engine
from llmtune.inference.sampling import Sampling
from llmtune.merging.files import EYES, GENERATION, TOKENIZER, copy_files
from llmtune.models.quantization import PACKAGES, need_bitsandbytes
from llmtune.types import Conversation, Message
from llmtune.utils.accelerator import accelerator
from llmtune.utils.files import write_json
from llmtune.utils.logging import get_logger, quiet_gptqmodel

PROOF_ROWS = 64
ANSWER_TOKENS = 16


def need_quantizer(args: ExportArguments) -> None:
    """Raise MissingPackageError if the quantisation package is missing, UsageError if there is no calibration data."""
    if args.quant_method == "bnb":
        need_bitsandbytes("--quant_method bnb")
        return
    packages, install = PACKAGES["gptq"]
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackageError(f"--quant_method gptq needs {missing[0]}: {install}")
    if not (args.calibration_dataset or args.inferred.dataset or _own_data(args).dataset):
        raise UsageError("GPTQ needs calibration data: give some with --calibration_dataset.")


def quantize(args: ExportArguments, whole: Path, folder: Path) -> dict[str, Any]:
    """Quantise the weights of a folder into another one.

    Returns:
        Report: bits, rows, and the loss before and after, where there are rows to measure it on.
    """
    report: dict[str, Any] = {"quant_method": args.quant_method, "bits": args.bits}
    rows = _proof_rows(args)
    before = _loss(_load(args, whole), rows)
    if args.quant_method == "gptq":
        report |= _gptq(args, whole, folder)
    else:
        engine = _load(args, whole, quantization_bit=args.bits, quant_method="bnb")
        engine.model.save_pretrained(str(folder))
        del engine
    for pattern in (TOKENIZER, GENERATION, EYES):
        copy_files(whole, folder, pattern)
    gc.collect()
    engine = _load(args, folder)
    _prove_answers(engine, rows)
    after = _loss(engine, rows)
    if before is not None and after is not None:
        report |= {"rows": len(rows), "loss_before": round(before, 6), "loss_after": round(after, 6)}
        get_logger().info("Loss on %d rows: %.4f before quantisation, %.4f after.", len(rows), before, after)
    write_json(folder / "quantization.json", report)
    return report


def _gptq(args: ExportArguments, whole: Path, folder: Path) -> dict[str, Any]:
    quiet_gptqmodel()
    # upstream: gptqmodel 7.7.0 gptqmodel/__init__.py: on two cores its pools ask for more workers than there are
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, os.cpu_count() or 2)))
    engine = _load(args, whole)
    samples = _calibration(args, engine)
    del engine
    gc.collect()
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    backend = BACKEND.AUTO if accelerator().is_gpu else BACKEND.TORCH  # AUTO would compile one for the CPU
    config = QuantizeConfig(bits=args.bits, group_size=args.group_size)
    get_logger().info("GPTQ, %d bits, groups of %d, on %d rows.", args.bits, args.group_size, len(samples))
    source, target = str(whole.resolve()), str(folder.resolve())
    try:
        with _off_standard_output(), _logs_elsewhere():
            model = GPTQModel.load(source, config, backend=backend)
            model.quantize(samples, batch_size=1, backend=backend)
            model.save(target)
    except (ValueError, RuntimeError, NotImplementedError, AssertionError) as err:
        raise LlmtuneError(f"gptqmodel cannot quantise this model: {one_line(err)}") from err
    return {"group_size": args.group_size, "calibration_rows": len(samples)}


@contextlib.contextmanager
def _off_standard_output() -> Iterator[None]:
    """Send gptqmodel's output to the terminal, or nowhere: standard output is for results."""
    with ExitStack() as stack:
        nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
        # upstream: gptqmodel 7.7.0 gptqmodel/utils/logger.py: writes to standard output, which is for results
        stack.enter_context(contextlib.redirect_stdout(sys.stderr if sys.stderr.isatty() else nowhere))
        quiet_gptqmodel()
        yield


@contextlib.contextmanager
def _logs_elsewhere() -> Iterator[None]:
    """Run the block in a temporary working directory."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        # upstream: gptqmodel 7.7.0 gptqmodel/looper/loop_processor.py: writes logs/ into the working directory
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def _calibration(args: ExportArguments, engine: Engine) -> list[dict[str, list[int]]]:
    """Return calibration rows as in training: rendered with the template, responses included."""
    chosen = args.calibration_dataset or _own_data(args).dataset
    found, _ = get_dataset(
        chosen, dataset_test_ratio=0, need_answer=False, use_hf=args.use_hf, hub_token=args.hub_token
    )
    count = min(args.num_calibration_samples, len(found))
    rows = [from_record(found[index]) for index in range(count)]
    encoded = [sample for row in engine.template.encode_rows(rows) for sample in row.samples]
    samples = [{"input_ids": one.input_ids, "attention_mask": [1] * len(one.input_ids)} for one in encoded]
    if not samples:
        raise DataError(f"None of the {count} rows of --calibration_dataset can be written with the template.")
    return samples


def _own_data(args: ExportArguments) -> InferArguments:
    """Return the checkpoint's arguments with the data that it was trained on."""
    return args.infer_arguments(eval_human=None)


def _proof_rows(args: ExportArguments) -> list[Conversation]:
    own = _own_data(args)
    try:
        if own.dataset or own.val_dataset:
            rows = rows_to_answer(
                dataclasses.replace(own, show_dataset_sample=PROOF_ROWS, load_args_from_ckpt_dir=False)
            )
            return [row for row in rows if row.turns and row.turns[-1].role == "assistant"]
    except LlmtuneError as err:
        get_logger().warning("The loss before and after is not measured: %s", err)
    return []


def _load(args: ExportArguments, folder: Path, **changes: Any) -> Engine:
    found = args.inferred
    options: dict[str, Any] = {
        "ckpt_dir": str(folder),
        "sft_type": None,
        "load_args_from_ckpt_dir": False,
        "quantization_bit": 0,
        "rope_scaling": None,
        "rope_factor": None,
    }
    return load_engine(dataclasses.replace(found, **(options | changes)))


def _loss(engine: Engine, rows: Sequence[Conversation]) -> float | None:
    if not rows:
        return None
    with tempfile.TemporaryDirectory() as folder:
        return loss_scores(engine, rows, Journal(Path(folder) / "losses.jsonl"), 4).get("loss")


def _prove_answers(engine: Engine, rows: Sequence[Conversation]) -> None:
    row = rows[0] if rows else Conversation((Message("user", "1 + 1 = ?"),))
    try:
        list(engine.answer([row], Sampling(max_new_tokens=ANSWER_TOKENS)))
    except (RuntimeError, ValueError, TypeError) as err:
        raise CheckpointError(f"The quantised model cannot generate, so it is not kept: {one_line(err)}") from err
