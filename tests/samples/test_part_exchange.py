"""Windows of a stream that several processes encode together: the same samples as from one, each row encoded once.

Threads stand for the processes, each with its own stream and its own place in the exchange.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmtune.data.streaming import RecordStream
from llmtune.models.loading import get_model_tokenizer
from llmtune.samples.part_exchange import KEPT, PartExchange, exchange_on_this_machine
from llmtune.samples.streaming import StreamedSamples
from llmtune.samples.token_batches import samples_of
from llmtune.templates.lookup import get_template
from llmtune.utils.files import cache_root, machine_id

from .test_streaming import files

__all__ = ["files"]

ROWS = 16
NUM_SAMPLES = 90
RUN = "run"


class Counted(StreamedSamples):
    """Notes which rows it encodes: (number of the first one in its pass, how many).

    `done` and `left`: those, and the files of all processes, once all had all samples.
    """

    done: list[tuple[int, int]]
    left: list[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.encoded: list[tuple[int, int]] = []

    def _encode(self, start: int, records: Sequence[dict[str, Any]]) -> Any:
        self.encoded.append((start, len(records)))
        return super()._encode(start, records)


@dataclass
class Way:
    """Data, and what becomes of it."""

    data: Sequence[str]
    kind: Any = "conversations"
    options: dict[str, Any] = field(default_factory=dict)
    rows: int = ROWS


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return get_model_tokenizer("llmtune-tiny", load_model=False)[1]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMTUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def opened(tokenizer: Any, files: list[Path]) -> Callable[..., Counted]:
    """A function that opens the stream of one process."""

    def open_one(exchange: PartExchange | None = None, way: Way | None = None) -> Counted:
        way = way or Way([str(file) for file in files])
        options = {"seed": 1, "capacity": None} | way.options
        template = get_template("chatml", tokenizer, max_length=128)
        return Counted(RecordStream(way.data, kind=way.kind), template, rows=way.rows, exchange=exchange, **options)

    return open_one


def values(found: Any) -> Any:
    """The same as plain values, to be compared."""
    if isinstance(found, np.ndarray):
        return [str(found.dtype), found.tolist()]
    if isinstance(found, dict):
        return {name: values(value) for name, value in found.items()}
    return [values(one) for one in found] if isinstance(found, list) else found


def together(streams: Sequence[Counted], num_samples: int = NUM_SAMPLES) -> list[list[Any]]:
    """What each gives in a thread of its own. None closes before all have all, as ranks in lockstep."""
    barrier = threading.Barrier(len(streams))

    def work(stream: Counted) -> list[Any]:
        running = iter(stream)
        found = values(list(islice(running, num_samples)))
        barrier.wait()
        stream.done = list(stream.encoded)
        stream.left = sorted(file.name for file in cache_root().glob("streams/.*/*.arrow"))
        barrier.wait()
        running.close()
        return found

    with ThreadPoolExecutor(len(streams)) as pool:
        return list(pool.map(work, streams))


WAYS = {
    "rows": Way(["tiny-qa#70", "self-intro#30"]),
    "windows with less rows than processes": Way(["tiny-qa#70"], rows=2),
    "packs": Way(["tiny-qa#70", "self-intro#30"], options={"capacity": 128}),
    "blocks": Way(["tiny-text"], options={"capacity": 64, "join": True}),
    "pairs": Way(["tiny-pairs#40"], "pairs", {"capacity": 256}),
    "labels": Way(["tiny-labels#40"], "labels", {"partners": True}),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_several_processes_give_what_one_gives(opened, way):
    alone = opened(way=way)
    expected = values(list(islice(alone, NUM_SAMPLES)))
    streams = [opened(PartExchange(place, 3, RUN, patience_s=120), way) for place in range(3)]
    assert together(streams) == [expected] * 3
    assert streams[0].place_after(70) == streams[2].place_after(70) == alone.place_after(70)


def test_each_row_is_encoded_by_one_process(opened):
    streams = [opened(PartExchange(place, 3, RUN, patience_s=120)) for place in range(3)]
    together(streams, 70)
    windows = [range(start, min(start + ROWS, 70)) for start in range(0, 70, ROWS)]
    for place, stream in enumerate(streams):
        bounds = [(len(one) * place // 3, len(one) * (place + 1) // 3) for one in windows]
        own = [(one[0] + first, end - first) for one, (first, end) in zip(windows, bounds, strict=True)]
        assert stream.done[: len(own)] == own
        assert len(stream.done) <= len(own) + 1  # the next pass has begun
        assert len(stream.left) <= 3 * (KEPT + 1)  # one is written before an old one goes
    assert not list(cache_root().glob("streams/*"))
    assert not list(cache_root().glob("streams/.*"))


def test_counts_and_numbers_of_rows_are_those_of_one_process(opened, files):
    records = list(RecordStream([str(files[0])]))

    def encoded(stream: Counted) -> tuple[Any, dict[str, Any]]:
        with stream._exchange.open():
            return values(samples_of(stream._encoded(0, 100, records))), asdict(stream.report)

    expected = encoded(opened())
    assert expected[1]["num_rows"] == len(records)
    assert expected[0][-1]["row"] == 100 + len(records) - 1
    with ThreadPoolExecutor(2) as pool:
        assert (
            list(pool.map(encoded, (opened(PartExchange(at, 2, RUN, patience_s=120)) for at in range(2))))
            == [expected] * 2
        )


def test_loss_weights_reach_all_processes(opened, tmp_path):
    rows = [
        [{"role": "user", "content": "how many"}, {"role": "assistant", "content": f"{at}", "weight": weight}]
        for at, weight in enumerate([0.5, 1.0, 1.0, 2.0])
    ]
    (tmp_path / "weighted.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    way = Way([str(tmp_path / "weighted.jsonl")], rows=4)
    found = together([opened(PartExchange(place, 2, RUN, patience_s=120), way) for place in range(2)], 4)
    assert found[0] == found[1]
    most = {one["sample"]: max(one["loss_weights"][1]) for one in found[0] if "loss_weights" in one}
    least = {one["sample"]: min(one["loss_weights"][1]) for one in found[0] if "loss_weights" in one}
    assert (most, least) == ({0: 1.0, 3: 2.0}, {0: 0.5, 3: 1.0})


def test_resumed_with_another_number_of_processes(opened):
    alone = opened()
    expected = values(list(islice(alone, NUM_SAMPLES)))
    for stop in (0, 15, 16, 33, 70):
        place = json.loads(json.dumps(alone.place_after(stop)))
        streams = [opened(PartExchange(at, 2, f"resumed at {stop}", patience_s=120)) for at in range(2)]
        for stream in streams:
            stream.go_on_from(place)
        assert together(streams, NUM_SAMPLES - stop) == [expected[stop:]] * 2
        assert streams[1].place_after(80) == alone.place_after(80)


def test_one_process_writes_nothing(opened):
    list(islice(opened(exchange_on_this_machine()), NUM_SAMPLES))
    assert not cache_root().joinpath("streams").exists()


def stands_for(place: int, process: int) -> Path:
    """The folder of another process."""
    folder = cache_root() / "streams" / f".{RUN}-1-{place}.{machine_id()}-{process}-00000000.tmp"
    folder.mkdir(parents=True)
    return folder


def ended_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_process_that_never_comes_or_was_killed_is_done_without(opened):
    expected = values(list(islice(opened(), NUM_SAMPLES)))
    folder = stands_for(1, ended_process())
    stream = opened(PartExchange(0, 2, RUN, patience_s=0.0))
    assert values(list(islice(stream, NUM_SAMPLES))) == expected
    assert not folder.exists()  # it was swept


def test_a_process_that_stops_is_done_without(opened):
    expected = values(list(islice(opened(), NUM_SAMPLES)))
    stays, leaves = (opened(PartExchange(place, 2, RUN, patience_s=120)) for place in range(2))
    with ThreadPoolExecutor(1) as pool:
        running = iter(leaves)
        first = pool.submit(lambda: list(islice(running, 20)))
        begun = iter(stays)
        assert values(list(islice(begun, 20))) == expected[:20]
        assert values(first.result()) == expected[:20]
        running.close()
        assert values(list(islice(begun, NUM_SAMPLES - 20))) == expected[20:]


def test_a_process_with_other_rows_is_not_waited_for(opened, files):
    ways = [Way([str(files[0])]), Way([str(files[1])])]
    expected = [values(list(islice(opened(way=way), 40))) for way in ways]
    found = together([opened(PartExchange(place, 2, RUN, patience_s=120), way) for place, way in enumerate(ways)], 40)
    assert found == expected


@pytest.mark.parametrize("breaks", ["at the start", "later"])
def test_a_full_disk_costs_only_time(opened, breaks, caplog):
    """What cannot be written is encoded by all, and nobody waits for it."""
    expected = values(list(islice(opened(), NUM_SAMPLES)))
    exchanges = [PartExchange(place, 2, RUN, patience_s=120) for place in range(2)]
    if breaks == "at the start":
        cache_root().mkdir(parents=True, exist_ok=True)
        cache_root().joinpath("streams").write_text("not a folder")
        found = together([opened(exchange) for exchange in exchanges])
    else:
        streams = [opened(exchange) for exchange in exchanges]
        give = exchanges[1]._give

        def fails(number: int, *args: Any) -> None:
            if number == 2:
                exchanges[1]._folder.joinpath("made").mkdir()
            give(number, *args)

        exchanges[1]._give = fails
        found = together(streams)
    assert found == [expected] * 2
    assert "each process encodes all rows" in caplog.text
