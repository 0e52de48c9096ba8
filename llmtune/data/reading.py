"""Read rows into a canonical Arrow file, by one process or several that take parts of the files.

The rows, their order and the report do not depend on the number of processes: each takes the next part that nobody has,
and writes its rows into a file of its own, which are joined in the order of the parts as they come.
"""

from __future__ import annotations

import errno
import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

from llmtune import errors
from llmtune.data.arrow_files import open_batches
from llmtune.data.files import Located, Part
from llmtune.data.rows import LoadReport, write_records
from llmtune.errors import DataError, LlmtuneError
from llmtune.utils.files import read_json
from llmtune.utils.logging import get_logger
from llmtune.utils.processes import end_with_parent
from llmtune.utils.progress import progress_bar

Convert: TypeAlias = "Callable[[Iterable[Located], LoadReport], Iterator[dict[str, Any]]]"
"""From rows to canonical records; the report counts them."""

POLL_SECONDS = 0.05


def read_parts(
    parts: Sequence[Part], convert: Convert, file: Path, schema: pa.Schema, *, source: str, processes: int
) -> LoadReport:
    """Write the rows of all parts to an Arrow stream file, and return the report on them.

    Args:
        processes: That read, where there is more than one part; several need a system and a process that can fork.

    Raises:
        DataError: A part cannot be read; of several, the first says why. LlmtuneError: A process was ended.
    """
    if processes > 1 and len(parts) > 1:
        return _by_several(parts, convert, file, schema, source, min(processes, len(parts)))
    report = LoadReport(source)
    rows = itertools.chain.from_iterable(part() for part in parts)
    shown = progress_bar(rows, desc=f"reading {source}", unit=" rows", delay=2, leave=False, quiet=_is_quiet())
    write_records(convert(shown, report), file, schema)
    return report


def _is_quiet() -> bool:
    return not get_logger().isEnabledFor(20)


def _by_several(
    parts: Sequence[Part], convert: Convert, file: Path, schema: pa.Schema, source: str, processes: int
) -> LoadReport:
    context = multiprocessing.get_context("fork")
    taken, disk_error = context.Value("q", 0), context.Value("i", 0)
    words = (parts, convert, file, schema, source, taken, disk_error)
    workers: list[Any] = [context.Process(target=_work, args=words, daemon=True) for _ in range(processes)]
    for worker in workers:
        worker.start()
    report = LoadReport(source)
    try:
        with open_batches(file, schema) as joined:
            numbers = progress_bar(range(len(parts)), desc=f"reading {source}", unit=" parts", quiet=_is_quiet())
            for number in numbers:
                made = _part_file(file, number)
                report.add_part(_wait_for(made, workers, source, disk_error))
                with pa.OSFile(str(made), "rb") as opened, pa.ipc.open_stream(opened) as batches:
                    for batch in batches:
                        joined.write(batch)
                made.unlink()
                _outcome_file(made).unlink()
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
    return report


def _part_file(file: Path, number: int) -> Path:
    return file.with_name(f"{file.stem}-{number:06}{file.suffix}")


def _outcome_file(made: Path) -> Path:
    return made.with_suffix(".json")


def _work(
    parts: Sequence[Part],
    convert: Convert,
    file: Path,
    schema: pa.Schema,
    source: str,
    taken: Any,
    disk_error: Any,
) -> None:
    """Take parts in their order until none is left, or one cannot be read."""
    end_with_parent()
    try:
        while (number := _next(taken)) < len(parts):
            made = _part_file(file, number)
            outcome = _attempt(parts[number], convert, made, schema, source)
            unfinished = made.with_suffix(".tmp")
            unfinished.write_text(json.dumps(outcome), encoding="ascii")
            unfinished.rename(_outcome_file(made))
            if "error" in outcome:
                taken.value = len(parts)  # those before it are being read
    except KeyboardInterrupt:
        os._exit(130)
    except OSError as err:
        disk_error.value = err.errno or errno.EIO


def _next(taken: Any) -> int:
    with taken.get_lock():
        taken.value += 1
        return int(taken.value) - 1


def _attempt(part: Part, convert: Convert, made: Path, schema: pa.Schema, source: str) -> dict[str, Any]:
    report = LoadReport(source)
    try:
        write_records(convert(part(), report), made, schema)
    except LlmtuneError as err:
        return {"error": str(err), "kind": type(err).__name__}
    return {"report": report.to_json()}


def _wait_for(made: Path, workers: Sequence[Any], source: str, disk_error: Any) -> LoadReport:
    file = _outcome_file(made)
    while not file.exists():
        if disk_error.value:
            raise OSError(disk_error.value, os.strerror(disk_error.value))
        failed = [worker.exitcode for worker in workers if worker.exitcode]
        if (failed or not any(worker.is_alive() for worker in workers)) and not file.exists():
            raise LlmtuneError(f"{source}: a process that read its rows was ended {_how(failed[0] if failed else 0)}.")
        time.sleep(POLL_SECONDS)
    outcome = read_json(file)
    if "error" in outcome:
        kind = getattr(errors, outcome["kind"], DataError)
        raise kind(outcome["error"])
    return LoadReport.from_json(source, outcome["report"])


def _how(code: int) -> str:
    if code >= 0:
        return f"with status {code}; --dataset_num_proc 1 reads without other processes"
    return f"by signal {-code}; if memory is short, lower --dataset_num_proc"
