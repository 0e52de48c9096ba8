"""`--dry_run true`: what would run, from flags, registries and local files. No torch, no network.

Nothing is loaded, downloaded or written; hubs are not asked.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmtune.errors import HubError, MissingPackageError, ModelError, UsageError
from llmtune.hub.settings import HubOptions, use_hf
from llmtune.models.info import AUTO, MODEL_MAPPING
from llmtune.utils.files import read_json

if TYPE_CHECKING:
    from llmtune.arguments.groups import DataArguments, ModelArguments, QuantizationArguments

__all__ = [
    "DryRunArguments",
    "Found",
    "config_of",
    "data_rows",
    "dtype_text",
    "find_model",
    "no_network",
    "quantization_text",
    "show",
]


@dataclass(kw_only=True)
class DryRunArguments:
    """Dry run."""

    dry_run: bool = False
    """Check the flags, print what would run, and exit: nothing is loaded, downloaded or written."""

    def __post_init__(self) -> None:
        resolve = super().__post_init__  # type: ignore[misc]
        if not self.dry_run:
            return resolve()  # type: ignore[no-any-return]
        with no_network():
            try:
                resolve()
            except HubError:  # only the hub can tell what this model is: its files will, once fetched
                vars(self)["model_type"] = AUTO
                resolve()


@contextlib.contextmanager
def no_network() -> Iterator[None]:
    """Search hub downloads on this machine only."""
    before = os.environ.get("LLMTUNE_OFFLINE")
    os.environ["LLMTUNE_OFFLINE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["LLMTUNE_OFFLINE"]
        else:
            os.environ["LLMTUNE_OFFLINE"] = before


@dataclass(frozen=True)
class Found:
    """Where a model is. `folder`: None where it is not on this machine, or is made when it is first needed."""

    text: str
    folder: Path | None


def find_model(args: ModelArguments, *, bits: int, sft_type: str | None, lacks: list[str]) -> Found:
    """Find the model on this machine; packages that it needs and that are not installed are added to `lacks`.

    Raises:
        ModelError: A folder that is none of a model. UsageError: Its weights cannot be used in this way.
    """
    from llmtune.models.folder import model_folder
    from llmtune.models.loading import check_requirements
    from llmtune.models.prequantized import check_prequantized

    assert args.model_type is not None
    info = MODEL_MAPPING[args.model_type]
    if args.dtype is not None and info.torch_dtype not in (None, args.dtype):
        raise UsageError(f"{info.model_id_or_path} supports {info.torch_dtype} only: use --dtype {info.torch_dtype}.")
    with _noted(lacks):
        check_requirements(args.model_type, info)
    if info.get_folder is not None and args.model_id_or_path in (None, info.model_id_or_path):
        return Found("built by llmtune, no download", None)
    hub = HubOptions(args.use_hf, args.model_revision, args.hub_token, args.cache_dir)
    try:
        with no_network():
            folder = model_folder(info, args.model_id_or_path, hub=hub)
    except HubError:
        place = args.model_id_or_path or (info.hf_model_id if use_hf(args.use_hf) else info.model_id_or_path)
        return Found(f"{place} on {_hub_name(args.use_hf)}, not on this machine: it would be downloaded", None)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json, so it is not a model folder.")
    with _noted(lacks):
        check_prequantized(folder, sft_type=sft_type, quantization_bit=bits)
    return Found(str(folder), folder)


@contextlib.contextmanager
def _noted(lacks: list[str]) -> Iterator[None]:
    try:
        yield
    except MissingPackageError as err:
        lacks.append(str(err))


def data_rows(args: DataArguments, model: ModelArguments) -> dict[str, str]:
    """Each dataset and where its rows come from."""
    found = {"data": "; ".join(_source(item, model) for item in args.dataset) or "none"}
    if args.val_dataset:
        found["validation data"] = "; ".join(_source(item, model) for item in args.val_dataset)
    return found


def _source(text: str, model: ModelArguments) -> str:
    from llmtune.data.info import DATASET_MAPPING
    from llmtune.data.items import expand, is_hub_source, parse_hub_source, parse_item
    from llmtune.data.local import local_parts
    from llmtune.data.remote import from_hugging_face

    source = parse_item(text).source
    if is_hub_source(source):
        item = parse_hub_source(source)
        return _fetched(text, item.dataset_id, item.hub == "hf", model, ())
    if source not in DATASET_MAPPING:
        files = local_parts(expand(source)).train
        return f"{text}, {len(files)} file{'s' if len(files) > 1 else ''} on this machine"
    info = DATASET_MAPPING[source]
    if info.path is not None:
        return f"{text}, {info.path}"
    if info.get_function is not None:
        return f"{text}, generated by its own code"
    hugging_face = from_hugging_face(source, info, model.use_hf)
    return _fetched(text, str(info.hf_dataset_id if hugging_face else info.dataset_id), hugging_face, model, info.files)


def _fetched(text: str, dataset_id: str, hugging_face: bool, model: ModelArguments, files: Sequence[str]) -> str:
    from llmtune.hub.fetch import fetch_dataset

    try:
        with no_network():
            folder = fetch_dataset(
                dataset_id,
                use_hf=hugging_face,
                token=model.hub_token,
                cache_dir=model.cache_dir,
                allow_patterns=[re.escape(name) for name in files] or None,
            )
    except HubError:
        return f"{text}, {dataset_id} on {_hub_name(hugging_face)}, not on this machine: it would be downloaded"
    return f"{text}, {folder}"


def _hub_name(hugging_face: bool | None) -> str:
    return "Hugging Face" if use_hf(hugging_face) else "ModelScope"


def dtype_text(args: ModelArguments) -> str:
    pinned = MODEL_MAPPING[str(args.model_type)].torch_dtype
    if pinned is not None:
        return f"{pinned}, the model's own"
    return args.dtype or "bf16 on a GPU that supports it, else fp16; fp32 on CPU"


def quantization_text(args: QuantizationArguments) -> str:
    if args.quant_method == "torchao" or args.quantization_bit == 8:
        return f"8 bits, {args.quant_method}"
    double = ", double quantisation" if args.bnb_4bit_use_double_quant else ""
    computed = f", compute dtype {args.bnb_4bit_comp_dtype}" if args.bnb_4bit_comp_dtype else ""
    return f"4 bits, {args.quant_method} {args.bnb_4bit_quant_type}{double}{computed}"


def config_of(found: Found) -> Mapping[str, object]:
    return {} if found.folder is None else read_json(found.folder / "config.json")


def show(rows: Mapping[str, str], notes: Sequence[str]) -> None:
    width = max(map(len, rows))
    sys.stdout.writelines(f"{name:<{width}}  {text}\n" for name, text in rows.items())
    sys.stdout.writelines(f"Note: {note}\n" for note in notes)
    sys.stdout.write("Dry run: all flags are valid. Nothing was loaded, downloaded or written.\n")
