"""The estimate of memory against what really is allocated: by the CPU's allocator here, by CUDA's where there is one.

Tolerance 4 % on the CPU: kernels' own workspaces are not seen (of attention and of matrix products, some MB), and
tensors of a few bytes are rounded up by the allocator. A wrong number of copies of anything would be far beyond it.
"""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from llmtune import SftArguments
from llmtune.models.info import MODEL_MAPPING
from llmtune.models.layers import checkpointing_kwargs
from llmtune.models.tiny import tiny_folder
from llmtune.planning.memory import Estimator
from llmtune.planning.workload import Batch
from llmtune.run.log import Decisions
from llmtune.training.build import build_model
from llmtune.training.optimizers import seeded

TOLERANCE = 0.04
BATCH, LENGTH, LEARNED = 2, 384, 300
VOCABULARY = 4096
CUDA = torch.cuda.is_available()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 of 6 layers with random weights."""
    made = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=2,
        vocab_size=VOCABULARY, tie_word_embeddings=False, max_position_embeddings=2048,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(made)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_folder() / name, made / name)
    return made


def arguments(folder: Path, **options: Any) -> SftArguments:
    checkpointing = options.pop("gradient_checkpointing", "none")
    args = SftArguments(
        model_type="llmtune-tiny", model_id_or_path=str(folder), dataset=["tiny-qa"], lora_target_modules=["ALL"]
        if options.get("sft_type", "lora") == "lora" else [], **options,
    )  # fmt: skip
    args.gradient_checkpointing = checkpointing
    return args


def estimated(args: SftArguments, dtype: torch.dtype, **batch: Any) -> Any:
    folder = Path(str(args.model_id_or_path))
    estimator = Estimator(MODEL_MAPPING["llmtune-tiny"], folder, dtype, on_gpu=CUDA)
    return estimator.estimate(args, Batch(BATCH, LENGTH, LEARNED, **batch))


def passes(args: SftArguments, dtype: torch.dtype, masked: bool) -> tuple[Any, Any]:
    """A model as `sft` trains it, and a function that runs forward and backward once."""
    model = build_model(args, MODEL_MAPPING["llmtune-tiny"], Decisions(), 10)
    model.train()
    if args.gradient_checkpointing != "none":
        kwargs = checkpointing_kwargs(str(args.gradient_checkpointing))
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        enable = getattr(inner, "activation_checkpointing_enable", None)
        (enable or inner.gradient_checkpointing_enable)(kwargs)  # before transformers 5.23
    device = next(model.parameters()).device
    ids = torch.randint(0, VOCABULARY, (BATCH, LENGTH))
    mask = torch.ones_like(ids)
    if masked:
        mask[0, -5:] = 0
    labels = torch.full_like(ids, -100)
    labels.view(-1)[LENGTH + 10 : LENGTH + 10 + LEARNED] = 5
    batch = {"input_ids": ids.to(device), "attention_mask": mask.to(device), "labels": labels.to(device)}

    def run() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            loss = model(**batch).loss
        loss.backward()

    return model, run


def peak_of(run: Any) -> int:
    """The most bytes that the CPU's allocator gave out beyond those at the start."""
    gc.collect()  # else what goes meanwhile, the model of an earlier test say, hides as much of the peak
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


MODES: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora full": {"gradient_checkpointing": "full"},
    "lora selective": {"gradient_checkpointing": "selective"},
    "full": {"sft_type": "full"},
    "full full": {"sft_type": "full", "gradient_checkpointing": "full"},
    "dora": {"use_dora": True},
    "rank 64": {"lora_rank": 64},
}
PRECISE = [(mode, torch.float32, False) for mode in MODES]
PRECISE += [("lora", torch.bfloat16, False), ("full", torch.bfloat16, False), ("lora", torch.float32, True)]


@pytest.mark.medium
@pytest.mark.skipif(CUDA, reason="the CPU's allocator is measured")
@pytest.mark.parametrize(("mode", "dtype", "masked"), PRECISE, ids=lambda value: str(value).removeprefix("torch."))
def test_peak_on_the_cpu(folder: Path, mode: str, dtype: torch.dtype, masked: bool):
    name = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
    args = arguments(folder, dtype=name, **MODES[mode])
    found = estimated(args, dtype, padded=masked)
    model, run = passes(args, dtype, masked)
    weights = sum(one.numel() * one.element_size() for one in [*model.parameters(), *model.buffers()])
    assert found.weights == pytest.approx(weights, rel=1e-3)
    assert found.trainable == sum(one.numel() for one in model.parameters() if one.requires_grad)
    assert found.parameters == sum(one.numel() for one in model.parameters())
    run()  # from here on there are gradients
    gradients = sum(one.grad.numel() * one.grad.element_size() for one in model.parameters() if one.grad is not None)
    assert found.gradients == gradients
    measured = peak_of(run)
    assert found.activations + found.logits == pytest.approx(measured, rel=TOLERANCE)


@pytest.mark.medium
@pytest.mark.skipif(CUDA, reason="the CPU's allocator is measured")
@pytest.mark.parametrize("sft_type", ["lora", "full"])
def test_first_gradients_and_states(folder: Path, sft_type: str):
    """Without accumulation, gradients come into being while activations go; then AdamW's states."""
    args = arguments(folder, sft_type=sft_type, dtype="fp32", gradient_accumulation_steps=1)
    found = estimated(args, torch.float32)
    model, run = passes(args, torch.float32, masked=False)
    parts = found.gradients + found.activations + found.logits
    assert parts == pytest.approx(max(peak_of(run), found.gradients), rel=TOLERANCE)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad])
    optimizer.step()
    states = [one for state in optimizer.state.values() for one in state.values() if one.ndim]
    assert found.optimizer == sum(one.numel() * one.element_size() for one in states)


@pytest.mark.medium
@pytest.mark.skipif(CUDA, reason="the CPU's allocator is measured")
def test_states_in_8_bits(folder: Path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    args = arguments(folder, sft_type="full", dtype="fp32", optim="adamw_bnb_8bit")
    model, run = passes(args, torch.float32, masked=False)
    run()
    manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
    embedding = model.get_input_embeddings()
    manager.register_module_override(embedding, "weight", {"optim_bits": 32})  # as transformers' Trainer does
    optimizer = bitsandbytes.optim.AdamW8bit(model.parameters())
    optimizer.step()
    held = [one for state in optimizer.state.values() for name, one in state.items()
            if isinstance(one, torch.Tensor) and name.startswith(("state", "absmax"))]  # fmt: skip
    measured = sum(one.numel() * one.element_size() for one in held)
    assert estimated(args, torch.float32).optimizer == pytest.approx(measured, rel=0.02)


@pytest.mark.medium
@pytest.mark.skipif(CUDA, reason="the CPU's allocator is measured")
@pytest.mark.parametrize("bits", [8, 4])
def test_full_fine_tuning_in_bf16(folder: Path, bits: int):
    """Weights, gradients and torchao's states; its states keep a table of 256 numbers or fewer per tensor."""
    torchao = pytest.importorskip("torchao.optim")
    args = arguments(folder, sft_type="full", pure_bf16=True, optim=f"adamw_torch_{bits}bit")
    found = estimated(args, torch.bfloat16)
    model, run = passes(args, torch.bfloat16, masked=False)
    run()
    one = seeded(torchao.AdamW8bit if bits == 8 else torchao.AdamW4bit)
    optimizer: Any = one(model.parameters(), block_size=256, rounding_seed=0)  # type: ignore[call-arg]
    optimizer.step()
    values = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    inner = [getattr(value, name) for value in values for name in getattr(value, "tensor_attrs", ()) if name != "qmap"]
    plain = [value for value in values if not hasattr(value, "tensor_attrs")]
    measured = sum(value.numel() * value.element_size() for value in [*inner, *plain])
    assert found.optimizer == pytest.approx(measured, rel=0.02)
    own = list(model.parameters())
    assert found.gradients == sum(value.grad.numel() * value.grad.element_size() for value in own)
    assert found.gradients == 2 * found.trainable


@pytest.mark.medium
@pytest.mark.skipif(CUDA, reason="the CPU's weights are measured")
@pytest.mark.parametrize(("bits", "double"), [(4, True), (4, False), (8, False)])
def test_quantised_estimates_match_measured_memory(folder: Path, bits: int, double: bool):
    """Weights against what bitsandbytes holds; the passes within 10 %: its kernels unpack in a way of their own."""
    pytest.importorskip("bitsandbytes")
    options = {"quantization_bit": bits} | ({"bnb_4bit_use_double_quant": double} if bits == 4 else {})
    args = arguments(folder, dtype="fp32", **options)
    found = estimated(args, torch.float32)
    model, run = passes(args, torch.float32, masked=False)
    tensors = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            tensors += [state.absmax] if state.state2 is None else [state.absmax, state.state2.absmax]
    storages = {one.data_ptr(): one.numel() * one.element_size() for one in tensors}  # some are buffers, too
    held = sum(storages.values())
    assert found.weights == pytest.approx(held, rel=0.02)
    run()
    assert found.activations + found.logits == pytest.approx(peak_of(run), rel=0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize("mode", ["lora", "lora full", "lora selective", "full", "full full"])
def test_peak_on_the_gpu(tmp_path: Path, mode: str):
    """Within 15 % of CUDA's own count, whose blocks are rounded up and whose kernels have workspaces."""
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=1024, intermediate_size=2816, num_hidden_layers=8, num_attention_heads=16, num_key_value_heads=4,
        vocab_size=32000, tie_word_embeddings=False, max_position_embeddings=2048,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_folder() / name, tmp_path / name)
    args = arguments(tmp_path, dtype="bf16", **MODES[mode])
    found = estimated(args, torch.bfloat16)
    model, run = passes(args, torch.bfloat16, masked=False)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad])
    run()
    optimizer.step()
    torch.cuda.reset_peak_memory_stats()
    run()
    optimizer.step()
    measured = torch.cuda.max_memory_allocated()
    print(f"{mode}: {found.total / measured:.3f} of {measured / 2**20:.0f} MiB")
    assert found.total == pytest.approx(measured, rel=0.15)
