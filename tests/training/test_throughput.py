"""What is told of a run's speed: counts that are right, and no wait for the device."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llmtune import SftArguments, sft
from llmtune.models.devices import find_gpu
from llmtune.models.flops import ModelFlops, model_flops
from llmtune.models.info import MODEL_MAPPING
from llmtune.run.log import Decisions
from llmtune.samples.collate import PackingCollator, PaddingCollator
from llmtune.training import throughput as module
from llmtune.training.build import build_model
from llmtune.training.throughput import Throughput
from llmtune.training.trainer import StageTrainer

ROWS = [
    {"input_ids": torch.arange(size).numpy(), "labels": torch.tensor([-100] * 2 + [1] * (size - 2)).numpy()}
    for size in (5, 9)
]
FLOPS = ModelFlops(per_token=100.0, per_trainable=10.0, per_context=1.0)


class NoSync(TorchDispatchMode):
    """Fails where a number is taken from a tensor: on a GPU that waits for all that is under way."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert "_local_scalar_dense" not in func.name()
        return func(*args, **(kwargs or {}))


def test_padding_counts_as_computed_not_as_useful():
    found = Throughput(FLOPS)
    with NoSync():
        found.count(PaddingCollator(0)(ROWS))
    assert (found.useful, found.computed, found.trainable) == (14, 18, 10)
    assert found.done == 18 * 100 + 10 * 10 + 2 * (9 * 10 // 2)


@pytest.mark.parametrize("flat", [True, False])
def test_packed_sequences_count_their_own_context_only(flat):
    """Rows behind one another attend to themselves alone."""
    found = Throughput(FLOPS)
    with NoSync():
        found.count(PackingCollator(0, flat=flat)(ROWS))
    assert found.useful == 14
    padding = found.computed - 14
    assert padding == (0 if flat else 4)
    assert found.done == found.computed * 100 + found.trainable * 10 + 5 * 6 // 2 + 9 * 10 // 2 + padding


def test_time_waiting_for_batches_is_counted(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock.now)

    def slow() -> Iterator[int]:
        for number in range(3):
            clock.now += 2.0
            yield number

    found = Throughput()
    found.on_train_begin()
    batches = found.batches(slow())
    assert [next(batches) for _ in range(2)] == [0, 1]
    assert found.waited == 4.0
    clock.now += 12.0
    found.on_step_end()
    assert found.summary()["data_wait_share"] == 0.25


def test_mfu_of_a_known_card(monkeypatch):
    """Operations over time over peak; counted for a T4, no other card being here."""
    monkeypatch.setattr(module, "_peak_tflops", lambda: find_gpu("T4").tflops)
    found = Throughput(ModelFlops(1e12, 0, 0))
    found.computed, found.stepping, found.steps = 65, 2.0, 1
    assert found.summary()["tflops"] == 32.5
    assert found.summary()["mfu"] == 0.5
    assert "mfu" not in Throughput(None).summary()


def test_every_mode_of_a_layer_is_counted():
    """LoRA: 4 operations a frozen weight, 6 an adapter's; full: 6 of all; quantised as not quantised."""

    def built(**options: Any) -> Any:
        args = SftArguments(
            **{"model_type": "llmtune-tiny", "dataset": ["tiny-qa"], "gradient_checkpointing": "none"} | options
        )
        return build_model(args, MODEL_MAPPING["llmtune-tiny"], Decisions(), 2)

    def flops(**options: Any) -> ModelFlops:
        return model_flops(built(**options))

    full = flops(sft_type="full")
    lora = flops(lora_rank=4)
    adapters = sum(one.numel() for one in built(lora_rank=4).parameters() if one.requires_grad)
    assert lora.per_token == full.per_token * 4 / 6 + 6 * adapters
    assert lora.per_trainable == full.per_trainable * 4 / 6
    assert lora.per_context == full.per_context > 0
    assert flops(lora_rank=4, modules_to_save=["lm_head"]).per_trainable == full.per_trainable


def test_flops_agree_with_torchs_counter():
    """Against torch's own counter of a whole pass: its products. The head is frozen, whose gradient it does not see."""
    from torch.utils.flop_counter import FlopCounterMode

    args = SftArguments(
        model_type="llmtune-tiny", dataset=["tiny-qa"], sft_type="full", gradient_checkpointing="none",
        freeze_parameters=["embed_tokens"],
    )  # fmt: skip
    model = build_model(args, MODEL_MAPPING["llmtune-tiny"], Decisions(), 2).train()
    ids = torch.randint(3, 400, (2, 64))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    counts = {str(operation): count for operation, count in counter.get_flop_counts()["Global"].items()}
    products = sum(count for name, count in counts.items() if "mm" in name)
    assert model_flops(model).of(2 * 64, 2 * 63, 0) == pytest.approx(products, rel=0.01)


def test_a_run_tells_it(tmp_path):
    found = sft(
        SftArguments(
            model_type="llmtune-tiny",
            dataset=["tiny-qa#24"],
            batch_size=4,
            gradient_accumulation_steps=2,
            max_steps=2,
            logging_steps=1,
            eval_strategy="no",
            save_strategy="no",
            report_to=["none"],
            output_dir=str(tmp_path),
        )
    )
    records = [json.loads(line) for line in (found.output_dir / "logging.jsonl").read_text().splitlines()]
    wanted = {"computed_tokens_per_second", "padding_share", "trainable_share", "data_wait_share", "tflops",
              "peak_memory_gib", "seconds_to_first_step"}  # fmt: skip
    assert wanted <= set(records[0])
    assert wanted <= set(found.metrics)
    assert 0 <= found.metrics["data_wait_share"] <= 1
    assert 0 < found.metrics["seconds_to_first_step"] < 600
    assert found.metrics["tflops"] > 0
    report = (found.output_dir / "report.md").read_text()
    for text in (
        "| trainable tokens |",
        "model TFLOP/s (recomputation not counted) |",
        "| waiting for data |",
        "| peak memory |",
    ):
        assert text in report


def test_the_trainer_waits_through_the_throughput():
    trainer = StageTrainer.__new__(StageTrainer)
    trainer._throughput = Throughput()
    trainer._get_num_items_in_batch = lambda *_: None  # type: ignore[method-assign]
    batches, _ = trainer.get_batch_samples(iter([{"a": 1}, {"a": 2}, {"a": 3}]), 2, torch.device("cpu"))
    assert batches == [{"a": 1}, {"a": 2}]
    assert trainer._throughput.waited > 0
