"""--gradient_checkpointing: the same loss and gradients in each mode, really active, and chosen by memory."""

from __future__ import annotations

import copy
import json
from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llmtune import SftArguments, sft
from llmtune.arguments.parser import parse
from llmtune.errors import UsageError
from llmtune.models.activation_checkpointing import checkpointing_kwargs
from llmtune.models.info import MODEL_MAPPING
from llmtune.models.tiny import tiny_folder
from llmtune.planning import auto
from llmtune.planning.memory import Batch
from llmtune.planning.trace import LiveBytes
from llmtune.run.log import Decisions
from llmtune.training.build import build_model
from llmtune.training.stage import Stage

QUICK: dict[str, Any] = {
    "model_type": "llmtune-tiny", "dataset": ["tiny-qa#24"], "batch_size": 4, "gradient_accumulation_steps": 1,
    "max_steps": 2, "logging_steps": 1, "eval_strategy": "no", "save_strategy": "no", "report_to": ["none"],
}  # fmt: skip
MODES = ("none", "selective", "full")
LAYERS = 4
TARGETS = MODEL_MAPPING["llmtune-tiny"].lora_target_modules


class Products(TorchDispatchMode):
    """Counts matrix products and attentions."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "bmm") or "attention" in name:
            self.count["attention" if "attention" in name else "product"] += 1
        return func(*args, **(kwargs or {}))


def one_pass(mode: str, sft_type: str) -> dict[str, Any]:
    args = SftArguments(**QUICK | {"sft_type": sft_type, "gradient_checkpointing": mode})
    model = build_model(args, MODEL_MAPPING["llmtune-tiny"], Decisions(), 2).train()
    inner = model.get_base_model() if sft_type == "lora" else model
    if mode != "none":
        enable = getattr(inner, "activation_checkpointing_enable", None)
        (enable or inner.gradient_checkpointing_enable)(checkpointing_kwargs(mode))  # before transformers 5.23
    if sft_type == "lora":
        for name, value in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(value, std=0.05, generator=torch.Generator().manual_seed(1))
    calls: list[int] = []
    for number, layer in enumerate(inner.model.layers):
        layer.mlp.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 400, (2, 64), generator=generator)
    labels = ids.clone()
    labels[:, :20] = -100
    with LiveBytes(iter([*model.parameters(), *model.buffers()])) as live, Products() as products:
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        kept, forward = live.live, len(calls)
        loss.backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return {"loss": loss.item(), "gradients": gradients, "kept": kept, "products": products.count,
            "forward": forward, "backward": len(calls) - forward}  # fmt: skip


@pytest.mark.parametrize("sft_type", ["lora", "full"])
def test_modes_are_equal_and_active(sft_type):
    found = {mode: one_pass(mode, sft_type) for mode in MODES}
    plain = found["none"]
    for mode in MODES:
        assert found[mode]["loss"] == plain["loss"]
        assert found[mode]["gradients"].keys() == plain["gradients"].keys()
        for name, gradient in found[mode]["gradients"].items():
            torch.testing.assert_close(gradient, plain["gradients"][name], rtol=1e-6, atol=1e-8)
        assert found[mode]["forward"] == LAYERS
        assert found[mode]["backward"] == (0 if mode == "none" else LAYERS)
    assert plain["kept"] > 1.1 * found["selective"]["kept"] > 1.1 * 1.5 * found["full"]["kept"]
    # selective computes no attention and no dear product twice, full all of them
    counts = {mode: found[mode]["products"] for mode in MODES}
    assert counts["selective"]["attention"] == counts["none"]["attention"]
    assert counts["full"]["attention"] == counts["none"]["attention"] + LAYERS
    again = {mode: counts[mode]["product"] - counts["none"]["product"] for mode in MODES}
    assert again["full"] >= LAYERS * 6  # the last product of a layer is not needed for its gradients
    assert again["selective"] == 0 if sft_type == "full" else 0 < again["selective"] <= LAYERS * len(TARGETS)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The trainers of the runs."""
    made: list[Any] = []
    own = Stage._trainer
    monkeypatch.setattr(Stage, "_trainer", lambda *args: made.append(own(*args)) or made[-1])
    return made


@pytest.mark.medium
@pytest.mark.parametrize("mode", MODES)
def test_auto_takes_the_first_mode_that_fits(tmp_path, monkeypatch, trained, mode):
    """Memory is made as scarce as the mode needs it."""
    own = auto.least_checkpointing

    def scarce(args: Any, total_of: Any, _: float) -> Any:
        tried = copy.copy(args)
        tried.gradient_checkpointing = mode
        return own(args, total_of, total_of(tried))

    if mode != "none":
        monkeypatch.setattr(auto, "free_memory", lambda: 2**20)
        monkeypatch.setattr(auto, "least_checkpointing", scarce)
    run = sft(SftArguments(**QUICK | {"output_dir": str(tmp_path)})).output_dir
    report = (run / "report.md").read_text()
    said = {
        "none": "Gradient checkpointing: none; ",
        "selective": "checkpointing: selective; ",
        "full": "checkpointing: full; ",
    }
    assert said[mode] in report
    assert json.loads((run / "sft_args.json").read_text())["gradient_checkpointing"] == mode
    layer = trained[0].model.get_base_model().model.layers[0]
    assert layer.gradient_checkpointing == (mode != "none")
    if mode != "none":
        assert ("context_fn" in layer._gradient_checkpointing_func.keywords) == (mode == "selective")


def test_auto_where_the_model_cannot_be_traced(monkeypatch):
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("it looks at numbers")

    monkeypatch.setattr(auto, "free_memory", lambda: 2**20)
    monkeypatch.setattr(auto.Estimator, "estimate", fail)
    args = SftArguments(**QUICK)

    info = MODEL_MAPPING["llmtune-tiny"]
    mode, why = auto.decide_checkpointing(args, info, tiny_folder(), torch.float32, Batch(1, 10, 5))
    assert mode == "none"
    assert "it looks at numbers" in why


def test_auto_traces_nothing_where_memory_is_plenty(monkeypatch):
    """A small run on a large machine must start at once."""
    monkeypatch.setattr(auto, "free_memory", lambda: 8 * 2**30)
    monkeypatch.setattr(auto, "least_checkpointing", lambda *_: pytest.fail("traced"))
    args, info = SftArguments(**QUICK), MODEL_MAPPING["llmtune-tiny"]
    mode, _ = auto.decide_checkpointing(args, info, tiny_folder(), torch.float32, Batch(4, 128, 200, padded=True))
    assert mode == "none"


@pytest.mark.medium
@pytest.mark.parametrize("sft_type", ["lora", "full"])
def test_the_bound_is_never_below_the_estimate(sft_type):
    """What is taken to fit without a trace must fit."""
    from llmtune.utils.files import read_json

    args = SftArguments(**QUICK | {"sft_type": sft_type, "lora_rank": 64, "lora_target_modules": ["ALL"]}
                        if sft_type == "lora" else QUICK | {"sft_type": sft_type})  # fmt: skip
    args.gradient_checkpointing = "none"
    config = read_json(tiny_folder() / "config.json")
    estimator = auto.Estimator(MODEL_MAPPING["llmtune-tiny"], tiny_folder(), torch.float32, on_gpu=False)
    for batch in (Batch(1, 16, 10), Batch(4, 256, 900, padded=True), Batch(1, 1024, 900, packed=True)):
        assert not auto.surely_fits(config, batch, estimator.estimate(args, batch).total)
        assert auto.surely_fits(config, batch, 100 * 2**30)


def test_gradient_checkpointing_takes_booleans_and_modes(tmp_path):
    def flag(*argv: str) -> str:
        return parse(SftArguments, ["--model_type", "llmtune-tiny", *argv], command="sft").gradient_checkpointing

    assert flag() == "auto"
    assert flag("--gradient_checkpointing") == "full"
    assert flag("--gradient_checkpointing", "true") == "full"
    assert flag("--gradient_checkpointing", "false") == flag("--no-gradient_checkpointing") == "none"
    assert flag("--gradient_checkpointing", "selective") == "selective"
    file = tmp_path / "run.yaml"
    for text, mode in (("true", "full"), ("false", "none"), ("auto", "auto"), ("full", "full")):
        file.write_text(f"gradient_checkpointing: {text}\n")
        assert flag("--config", str(file)) == mode
    assert SftArguments(model_type="llmtune-tiny", gradient_checkpointing=True).gradient_checkpointing == "full"
    assert SftArguments(model_type="llmtune-tiny", gradient_checkpointing=False).gradient_checkpointing == "none"
    with pytest.raises(UsageError, match="one of auto, full, selective, none"):
        SftArguments(model_type="llmtune-tiny", gradient_checkpointing="some")
    with pytest.raises(UsageError, match="--gradient_checkpointing some"):
        flag("--gradient_checkpointing", "some")
