"""Rows side by side: the same texts as alone, whoever comes and goes."""

from __future__ import annotations

import json
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from llmtune import InferArguments
from llmtune.inference import batching
from llmtune.inference.batching import Batcher, Closed, QueueFull
from llmtune.inference.constraints import JsonObject
from llmtune.inference.engine import Engine
from llmtune.inference.load import load_engine
from llmtune.inference.rows import Row
from llmtune.inference.sampling import Sampling
from llmtune.inference.texts import TokenText
from llmtune.types import Conversation, Message

from ..waiting import SECONDS, until

ENDLESS = ((0, -100.0), (2, -100.0))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return load_engine(InferArguments(model_type="llmtune-tiny", eval_human=True))


def row(engine: Engine, text: str, **settings) -> Row:
    prompt = engine.template.prompts([Conversation((Message("user", text),))])[0]
    constraint = settings.pop("constraint", None)
    settings = {"max_new_tokens": 20, "logit_bias": ENDLESS} | settings
    return Row(prompt, Sampling(**settings), engine.template, constraint=constraint)


SETTINGS = [
    {},
    {"do_sample": True, "seed": 1},
    {"do_sample": True, "seed": 2, "temperature": 0.5, "top_k": 40},
    {"do_sample": True, "seed": 3, "top_p": 0.7, "max_new_tokens": 35},
    {"repetition_penalty": 1.8},
    {"frequency_penalty": 1.5, "presence_penalty": 0.5},
    {"do_sample": True, "seed": 4, "constraint": JsonObject(), "max_new_tokens": 50},
    {"max_new_tokens": 3},
]


def rows(engine: Engine) -> list[Row]:
    return [row(engine, "hello " * (place + 1), **dict(one)) for place, one in enumerate(SETTINGS)]


@pytest.fixture(scope="module")
def alone(engine) -> list[str]:
    found = rows(engine)
    for one in found:
        engine.advance([one])
    assert len({one.text for one in found}) == len(found)
    assert {len(one.ids) for one in found} >= {3, 20, 35}
    return [one.text for one in found]


@pytest.mark.medium
def test_a_batch_of_all_settings(engine, alone):
    together = rows(engine)
    engine.advance(together)
    assert [one.text for one in together] == alone


def test_rows_that_join_a_batch(engine, alone, monkeypatch):
    """Read anew with what they have: at each third step, the worst case."""
    together = rows(engine)
    steps = []
    while any(one.finish_reason is None for one in together):
        at = len(steps)
        engine.advance(together[: 2 + at], until=lambda at=at: (steps.append(1), len(steps) >= at + 3)[1])
    assert [one.text for one in together] == alone
    assert len(steps) > 10


def test_queued_rows_equal_rows_alone(engine, alone):
    batcher = Batcher(engine, max_batch_size=3)
    together = rows(engine)
    for one in together:
        batcher.submit([one])
        time.sleep(0.005)
    batcher.close()
    assert [one.text for one in together] == alone
    with pytest.raises(Closed):
        batcher.submit(rows(engine))
    assert (batcher.num_running, batcher.num_waiting) == (0, 0)


@pytest.mark.medium
def test_continuous_batching_of_transformers(alone):
    """Another scheduler and a paged cache: the same texts."""
    from llmtune.inference.continuous import ContinuousBatcher

    engine = load_engine(InferArguments(model_type="llmtune-tiny", eval_human=True))  # its attention is switched over
    batcher = ContinuousBatcher(engine, max_batch_size=3, max_queue=6)
    together = rows(engine)
    for one in together:
        batcher.submit([one])
        time.sleep(0.005)
    while batcher.rows:
        time.sleep(0.01)
    assert [one.text for one in together] == alone
    long = [row(engine, "x", max_new_tokens=1500) for _ in range(9)]
    batcher.submit(long)
    with pytest.raises(QueueFull):
        batcher.submit([row(engine, "d")])
    while not long[0].ids:
        time.sleep(0.01)
    for one in long:
        one.cancel()
    batcher.forget_cancelled()
    assert {one.finish_reason for one in long} == {"cancelled"}
    last = row(engine, "hello ")
    batcher.submit([last])
    batcher.close()
    assert last.text == alone[0]
    with pytest.raises(Closed):
        batcher.submit([row(engine, "d")])


def test_a_full_queue_and_rows_that_nobody_waits_for(engine):
    batcher = Batcher(engine, max_batch_size=1, max_queue=2)
    running = row(engine, "a", max_new_tokens=1500)
    batcher.submit([running])
    waiting = [row(engine, "b"), row(engine, "c")]
    while not running.ids:
        time.sleep(0.01)
    batcher.submit(waiting)
    with pytest.raises(QueueFull):
        batcher.submit([row(engine, "d")])
    waiting[0].cancel()
    batcher.submit([row(engine, "e")])  # there is room
    assert waiting[0].finish_reason == "cancelled"
    running.cancel()
    batcher.close()
    assert running.finish_reason == "cancelled"
    assert len(running.ids) < 1400
    assert waiting[1].finish_reason == "length"


class Writer:
    """An engine that answers in one step; it is held until told to go on."""

    def __init__(self) -> None:
        self.batches: list[tuple[str | None, list[str]]] = []
        self.go_on = threading.Event()

    def advance(self, rows: list[Row], *, adapter: str | None, until: object) -> None:
        self.go_on.wait(SECONDS)
        self.batches.append((adapter, [str(one.keeps) for one in rows]))
        for one in rows:
            one.finish("stop")


def test_a_batch_is_of_one_adapter_and_the_first_come_is_the_first_served(engine):
    writer = Writer()
    batcher = Batcher(writer, max_batch_size=3)
    names = ["red", "red", "red", "red", "blue", "red", "blue", None, None]
    batcher.submit([row(engine, "x")], adapter="first")
    until(lambda: batcher.num_running == 1)
    together = []
    for number, name in enumerate(names):
        together.append(row(engine, "x"))
        together[-1].keeps = number
        batcher.submit(together[-1:], adapter=name)
    assert (batcher.num_running, batcher.num_waiting) == (1, len(names))
    writer.go_on.set()
    batcher.close()
    expected = [("red", [0, 1, 2]), ("red", [3]), ("blue", [4]), ("red", [5]), ("blue", [6]), (None, [7, 8])]
    assert writer.batches[1:] == [(name, [str(number) for number in numbers]) for name, numbers in expected]
    assert {one.finish_reason for one in together} == {"stop"}


LONG = "long"


@pytest.mark.parametrize(
    ("running", "waiting", "size", "from_s"),
    [
        ("red", ["red"], 2, 0.0),  # there is a place
        ("red", ["red"], 1, None),  # there is none, and nobody else's turn
        ("red", ["blue"], 2, batching.TURN_S),
        ("red", ["blue", "red"], 2, batching.TURN_S),  # red is behind blue, and does not overtake it
        ("red", [], 2, None),
        (LONG, ["red"], 1, batching.LONG_TURN_S),  # a long request makes room for a short one of any adapter
        (LONG, [LONG], 1, None),
        (LONG, [LONG, "red"], 1, batching.LONG_TURN_S),
    ],
)
def test_when_others_have_the_next_turn(engine, running, waiting, size, from_s):
    """Seconds of a batch from which on it stops for those who wait; None: it goes on to its end."""
    writer = Writer()
    batcher = Batcher(writer, max_batch_size=size)

    def submit(kind: str) -> None:
        one = row(engine, "x")
        one.ids = [5] * (batching.LONG_TOKENS if kind == LONG else 0)
        batcher.submit([one], adapter=kind)

    submit(running)
    until(lambda: batcher.num_running == 1)
    for kind in waiting:
        submit(kind)
    try:
        for seconds in (0.01, 0.2, 0.3, 0.9, 1.1, 50.0):
            assert batcher.newcomers(seconds) is (from_s is not None and seconds > from_s), seconds
    finally:
        writer.go_on.set()
        batcher.close()


def test_a_batch_is_prefilled_again_only_after_decoding_for_twice_as_long(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(batching.time, "monotonic", lambda: now[0])
    asked: list[float] = []
    asks = batching._Until(SimpleNamespace(newcomers=lambda seconds: asked.append(seconds) or True))
    found = []
    for at in (101.0, 101.5, 102.99, 103.0, 103.001, 103.02):  # it was read until 101
        now[0] = at
        found.append(asks())
    assert found == [False, False, False, True, False, True]
    assert asked == [pytest.approx(3.0), pytest.approx(3.02)], "the queue is looked at every ten milliseconds"


def test_one_bad_row_takes_nobody_with_it(engine, alone, monkeypatch):
    """A batch that does not fit into memory goes on in halves; what fails alone is told."""
    own = engine.model.forward
    most = 3

    def forward(*args, **options):
        if len(options["input_ids"]) > most:
            raise torch.cuda.OutOfMemoryError("too many")
        return own(*args, **options)

    monkeypatch.setattr(engine.model, "forward", forward)
    batcher = Batcher(engine, max_batch_size=8)
    together = rows(engine)
    batcher.submit(together)
    batcher.close()
    assert [one.text for one in together] == alone
    most = 0
    batcher = Batcher(engine)
    failing = row(engine, "x")
    batcher.submit([failing])
    batcher.close()
    assert isinstance(failing.error, torch.cuda.OutOfMemoryError)


def test_a_draw_has_the_distribution_that_it_should(engine):
    """The maximum of logits and noise falls as often on a token as transformers' own draw: by its probability."""
    from llmtune.inference.sampling import RowSampler

    logits = torch.full((1, 2048), -20.0)
    logits[0, 10:14] = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    one = row(engine, "x", do_sample=True, seed=0, top_k=3, temperature=1.0, logit_bias=())
    sampler = RowSampler([one], [0])
    ids = torch.tensor([one.prompt.input_ids])
    drawn = torch.tensor([int(sampler(ids, logits).argmax()) for _ in range(4000)])
    counts = [(drawn == token).float().mean().item() for token in range(10, 14)]
    expected = [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]
    assert counts == pytest.approx(expected, abs=0.03)
    assert counts[3] == 0, "top_k left it out"
    narrow = row(engine, "x", do_sample=True, seed=0, top_p=0.7, logit_bias=())
    sampler = RowSampler([narrow], [0])
    assert {int(sampler(ids, logits).argmax()) for _ in range(300)} == {10, 11}, "0.5 and 0.3 make up 0.7"


def test_padding_is_no_repetition(engine):
    """The pad token in front of a short row was not written by it: its penalty is not due."""
    from llmtune.inference.sampling import RowSampler

    one = row(engine, "x", repetition_penalty=3.0, logit_bias=())
    pad = engine.tokenizer.pad_token_id
    assert pad not in one.prompt.input_ids
    logits = torch.zeros(1, 2048)
    logits[0, pad], logits[0, 50] = 2.0, 1.0
    scores = RowSampler([one], [4])(torch.tensor([[pad] * 4 + one.prompt.input_ids]), logits)
    assert int(scores.argmax()) == pad


@pytest.mark.parametrize("text", ["héllo wörld", "你好，世界 🌍🌎", "a\n\n  b", "naïve 🤖"])
def test_half_a_character_waits_for_its_other_half(engine, text):
    ids = engine.tokenizer(text, add_special_tokens=False)["input_ids"]
    texts = TokenText(engine.tokenizer)
    pieces = [texts.add(token) for token in ids]
    assert "".join(pieces) + texts.rest() == text
    assert "\ufffd" not in "".join(pieces)
    cut = TokenText(engine.tokenizer)
    whole = "".join(cut.add(token) for token in ids[:-1]) + cut.rest()
    assert whole == engine.tokenizer.decode(ids[:-1])


@pytest.mark.medium
def test_json_by_a_model_that_writes_none(engine):
    ended = 0
    for seed in range(6):
        one = row(engine, "x", do_sample=True, seed=seed, constraint=JsonObject(), max_new_tokens=150, logit_bias=())
        engine.advance([one])
        assert JsonObject().after(one.text) is not None
        if one.finish_reason == "stop":
            json.loads(one.text)
            ended += 1
    greedy = row(engine, "x", constraint=JsonObject(), logit_bias=((2, 100.0), (0, 100.0)))
    engine.advance([greedy])  # it would end at once, and may not
    assert greedy.text.startswith("{")


@pytest.mark.medium
def test_long_requests_make_room_and_still_go_on(engine, monkeypatch):
    """Two that hold every place: short ones pass them, and among short ones without end they are finished, too."""
    monkeypatch.setattr(batching, "LONG_TOKENS", 40)
    monkeypatch.setattr(batching, "TURN_S", 0.1)
    monkeypatch.setattr(batching, "LONG_TURN_S", 0.02)
    expected = row(engine, "a", max_new_tokens=200)
    engine.advance([expected])
    batcher = Batcher(engine, max_batch_size=2)
    long = [row(engine, "a", max_new_tokens=200) for _ in range(2)]
    batcher.submit(long)
    while len(long[0].ids) < 40:
        time.sleep(0.005)
    passed = 0
    for number in range(500):
        short = row(engine, f"b {number}", max_new_tokens=4)
        batcher.submit([short])
        while short.finish_reason is None:
            time.sleep(0.002)
        passed += any(one.finish_reason is None for one in long)
        if all(one.finish_reason is not None for one in long):
            break
    batcher.close()
    assert passed > 2
    assert [one.text for one in long] == [expected.text] * 2


def test_the_answers_of_one_request_are_long_together(engine):
    many = [row(engine, "a") for _ in range(8)]
    for one in many:
        one.ids = [1] * (batching.LONG_TOKENS // 8)
    assert batching._Waiting(many[0], None, many).key == (None, True)
    assert batching._Waiting(many[0], None, many[:1]).key == (None, False)


def test_beam_search_answers_every_batch(engine):
    """A `break` for the `continue` behind a batch would lose all rows after the first."""
    asked = [Conversation((Message("user", text),)) for text in ("a", "b", "c")]
    sampling = Sampling(max_new_tokens=4, num_beams=2)
    assert len(list(engine.answer(asked, sampling, batch_size=1))) == 3
    assert len(list(engine.answer(asked, sampling, batch_size=2))) == 3
