"""Token cache: every row is encoded once, into a memory-mapped Arrow file that later runs open.

The file's name is a hash of everything that its content depends on: rows, template, tokenizer, limits and the code
of the templates.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from llmtune.data.arrow_files import open_batches
from llmtune.data.canonical import FORMATS_VERSION
from llmtune.errors import DataError, OutputError
from llmtune.samples.encode_report import EncodeReport, merged, tell_report
from llmtune.samples.shards import Shard, lock_of, make_shards, shards_of
from llmtune.samples.token_batches import COMPARISON_COLUMNS, layout_of
from llmtune.types import MEDIA_COLUMNS, Media
from llmtune.utils.files import (
    ENDS_SEAL,
    cache_root,
    is_whole,
    publish,
    read_json,
    seal_of,
    sweep,
    temporary_file,
    write_json,
)
from llmtune.utils.logging import get_logger
from llmtune.utils.progress import progress_bar

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

    from llmtune.templates.chat import ChatTemplate


BATCH_ROWS = 1000


class TokenStore:
    """Encoded samples: `store[i]` gives `input_ids` and `labels`, int32 arrays of equal length [T].

    With `images`, a list of paths, where the ids hold any; with `loss_weights`, float32 [T], where any is not 1. Of a
    comparison, the ids are those of the prompt and of each response behind it, and `parts` holds their lengths, the
    prompt's first; `ranks`, int32 [number of responses]; `label` and `margin`, None where the data has none.
    """

    def __init__(self, file: Path, shards: Sequence[Shard] = ()) -> None:
        """Open the files of a store.

        Args:
            file: Its name is the key of the content.
            shards: The files, if they are several.
        """
        self.file = file
        files = [shard.file for shard in shards] or [file]
        reports = [EncodeReport(**read_json(_report_file(one))["report"]) for one in files]
        self.report = reports[0] if len(reports) == 1 else merged(reports)
        parts = [pa.ipc.open_file(pa.memory_map(str(one))).read_all() for one in files]
        table = pa.concat_tables(parts)  # without copying
        self._comparison = {name: table.column(name) for name in COMPARISON_COLUMNS.names if name in table.schema.names}
        self._ids = table.column("input_ids").chunks
        self._labels = table.column("labels").chunks
        self._rows = table.column("row")
        self._media = {column: table.column(column) for column in MEDIA_COLUMNS.values()}
        self._weights = table.column("loss_weights").chunks
        self._starts = np.cumsum([0, *(len(chunk) for chunk in self._ids)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        chunk = int(np.searchsorted(self._starts, index, side="right")) - 1
        place = index - int(self._starts[chunk])
        sample: dict[str, Any] = {
            "input_ids": self._ids[chunk][place].values.to_numpy(),
            "labels": self._labels[chunk][place].values.to_numpy(),
        }
        if self.report.num_weighted and self._weights[chunk][place].is_valid:
            sample["loss_weights"] = self._weights[chunk][place].values.to_numpy()
        for name, values in self._comparison.items():
            sample[name] = values[index].values.to_numpy() if name in ("parts", "ranks") else values[index].as_py()
        media = {column: values[index].as_py() for column, values in self._media.items()}
        return sample | {column: paths for column, paths in media.items() if paths}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def row_of(self, index: int) -> int:
        """Return the index, in the encoded dataset, of the row that a sample comes from."""
        return int(self._rows[index].as_py())

    @property
    def has_comparisons(self) -> bool:
        return bool(self._comparison)

    def responses(self) -> NDArray[np.int64]:
        """Number of responses of each comparison."""
        return np.diff(self._comparison["ranks"].combine_chunks().offsets.to_numpy()).astype(np.int64)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each sample."""
        found = np.empty(len(self), np.int64)
        for chunk, (start, end) in zip(self._ids, pairwise(self._starts.tolist()), strict=True):
            found[start:end] = np.diff(chunk.offsets.to_numpy())
        return found


def encode_dataset(
    dataset: Dataset,
    template: ChatTemplate,
    *,
    name: str = "training",
    strict: bool = False,
    overwrite: bool = False,
    required: bool = True,
    processes: int = 1,
) -> TokenStore:
    """Encode a canonical dataset, or open the tokens that an earlier run encoded.

    Args:
        name: The use of the rows, for messages.
        strict: Stop at the first row that the template cannot express.
        overwrite: Encode again, even if the tokens are cached.
        required: Raise if no sample is left.
        processes: That encode, of more rows than a shard has.

    Raises:
        DataError: No sample is left and one is required, or `strict` and a row is bad.
    """
    file = cache_root() / "tokens" / f"{_key(dataset, template)}.arrow"
    shards = shards_of(file, len(dataset))
    # others may be reading the old files: they stay until new ones replace them
    old = {shard: _version(shard) for shard in shards} if overwrite else {}

    def is_made(shard: Shard) -> bool:
        return _is_made(shard) and (shard not in old or _version(shard) != old[shard])

    missing = [shard for shard in shards if not is_made(shard)]
    if not overwrite and any(map(_is_damaged, missing)):
        get_logger().warning(f"The encoded {name} rows in the cache are damaged; encoding them again.")

    def make(shard: Shard) -> None:
        _encode(dataset, template, shard, name=name, quiet=len(shards) > 1)

    with _writing(file) if missing else contextlib.nullcontext():
        make_shards(missing, make, is_made, processes=processes, name=name)
    store = TokenStore(file, shards)
    tell_report(store.report, template, name=name, strict=strict)
    if len(store) == 0:
        text = f"No {name} sample is left of {store.report.num_rows:,} rows. Look at the lines above."
        if required:
            raise DataError(text)
        get_logger().warning(text)
    return store


def _is_made(shard: Shard) -> bool:
    """Whether a shard is there and whole."""
    saved = read_json(_report_file(shard.file))
    if saved.get("check") != _check(saved.get("report")):
        return False
    return is_whole(shard.file, saved.get("seal"), ends_only=len(saved.get("seal") or ()) == ENDS_SEAL)


def _version(shard: Shard) -> tuple[int, int] | None:
    """Return what changes whenever a shard is made anew; None if it was never made."""
    try:
        state = _report_file(shard.file).stat()
    except FileNotFoundError:
        return None
    return state.st_ino, state.st_mtime_ns


def _is_damaged(shard: Shard) -> bool:
    """Whether a shard that is not whole has files, and nobody is making it."""
    there = any(map(os.path.lexists, (shard.file, _report_file(shard.file))))
    return there and not lock_of(shard.file).exists()


def _check(report: Any) -> int:
    return zlib.crc32(json.dumps(report, sort_keys=True).encode())


@contextlib.contextmanager
def _writing(file: Path) -> Iterator[None]:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        sweep(file.parent, is_ours=True)
        yield
    except OSError as err:
        raise OutputError(
            f"The encoded rows cannot be written to {file.parent} ({err.strerror or err}). "
            "Free some space, or set LLMTUNE_CACHE to another folder."
        ) from err


def _encode(dataset: Dataset, template: ChatTemplate, shard: Shard, *, name: str, quiet: bool) -> None:
    report = EncodeReport()
    template.expect(shard.stop - shard.start)
    shard.file.parent.mkdir(parents=True, exist_ok=True)
    with temporary_file(shard.file) as temporary:
        _write(dataset, template, temporary, report, shard, name=name, quiet=quiet)
        saved = asdict(report)
        # a whole checksum of hundreds of GB would delay each start by minutes
        about = {"seal": seal_of(temporary, ends_only=quiet), "check": _check(saved), "report": saved}
        publish(temporary, shard.file)
    write_json(_report_file(shard.file), about)


def _write(
    dataset: Dataset,
    template: ChatTemplate,
    file: Path,
    report: EncodeReport,
    shard: Shard,
    *,
    name: str,
    quiet: bool,
) -> None:
    schema, encode = layout_of(dataset.column_names)
    with (
        open_batches(file, schema, pa.ipc.new_file) as batches,
        _bar(0 if quiet else shard.stop - shard.start, name) as bar,
    ):
        for start in range(shard.start, shard.stop, BATCH_ROWS):
            records = _records(dataset[start : min(start + BATCH_ROWS, shard.stop)])
            batches.write(pa.record_batch(encode(records, template, start, report), schema=schema))
            bar.update(len(records))


def _records(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _key(dataset: Dataset, template: ChatTemplate) -> str:
    parts = [
        FORMATS_VERSION,
        # upstream: datasets 5.2.0 datasets/arrow_dataset.py: a fingerprint has no public name
        dataset._fingerprint,
        _template_text(template),
        tokenizer_digest(template.tokenizer),
        code_digest(),
        (
            template.system,
            template.max_length,
            template.truncation_strategy,
            template.loss_on,
            template.control_as_text,
            template.purpose,
            json.dumps(template.template_kwargs, sort_keys=True, default=repr),
        ),
        _media_text(dataset, template),
    ]
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def _media_text(dataset: Dataset, template: ChatTemplate) -> str:
    """Return what ids depend on for a vision model: files with size and time, and the image processor's settings."""
    if template.media is None:
        return ""
    media = (
        Media(path, kind) for kind, column in MEDIA_COLUMNS.items() for paths in dataset[column] for path in paths or ()
    )
    return repr(template.media.state(media))


def _template_text(template: ChatTemplate) -> str:
    if template.info.from_tokenizer:
        return str(template.tokenizer.chat_template)
    parts = [part for part in (template.info, template.info.tools) if part is not None]
    return repr([(item.name, _described(getattr(part, item.name))) for part in parts for item in fields(part)])


def _described(value: Any) -> Any:
    """Describe a function by its source: a change of it changes the tokens."""
    if not callable(value):
        return value
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):
        return value.__qualname__


def tokenizer_digest(tokenizer: Any) -> str:
    """Return a hash of a tokenizer: of its files where it has a folder, else of its serialised form."""
    digest = hashlib.blake2b(digest_size=16)
    folder = Path(str(tokenizer.name_or_path))
    names = ("tokenizer*", "vocab*", "merges*", "*.model", "*.tiktoken", "special_tokens*", "added_tokens*")
    files = sorted(file for pattern in names for file in folder.glob(pattern)) if folder.is_dir() else []
    for file in files:
        digest.update(file.read_bytes())
    if not files and getattr(tokenizer, "is_fast", False):
        digest.update(tokenizer.backend_tokenizer.to_str().encode())
    digest.update(repr(sorted(tokenizer.get_added_vocab().items())).encode())
    digest.update(repr((tokenizer.vocab_size, tokenizer.bos_token_id, tokenizer.eos_token_id)).encode())
    return digest.hexdigest()


def code_digest() -> str:
    """Return a hash of the code that renders and encodes: a change of it makes earlier files stale."""
    import llmtune.templates

    digest = hashlib.blake2b(digest_size=16)
    folder = Path(llmtune.templates.__file__).parent
    here = Path(__file__)
    for file in sorted([*folder.rglob("*.py"), here, here.with_name("token_batches.py")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _report_file(file: Path) -> Path:
    return file.with_suffix(".json")


def _bar(num_rows: int, name: str) -> Any:
    few = num_rows < 5 * BATCH_ROWS
    return progress_bar(total=num_rows, desc=f"Encoding {name} rows", unit="row", quiet=few)
