"""A dry calculation of runs on many GPUs, from `llmtune plan`'s own numbers: memory, step, communication, checkpoint.

    python benchmarks/scale.py [--gpu H100] [--gpus 64] [--mfu 0.4] [--network 50] [--link 450] [--disk 2]

Nothing is run: no machine of that size was at hand. Assumptions, all flags: MFU, GB/s of the network per GPU and of the
links inside a machine per GPU and direction, and GB/s that a machine writes to the shared file system. FSDP gathers
the weights of each layer twice per micro-batch (forward and backward) and reduces the gradients of trained weights once
per micro-batch; a ring of n ranks moves (n - 1) / n of that through each GPU's network. It overlaps with computing as
far as it is shorter, which is why the step is the longer of the two.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    # https://huggingface.co/Qwen/Qwen2.5-72B/blob/main/config.json
    "72b": {
        "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
    "7b": {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
}  # fmt: skip
COMMON = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 152064, "tie_word_embeddings": False,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    name: str
    shape: str
    stage: str
    data: str
    flags: dict[str, Any]


CASES = (
    Case(
        "72B, LoRA of rank 16",
        "72b",
        "sft",
        "tiny-qa",
        {"lora_rank": 16, "lora_target_modules": ["ALL"], "packing": True},
    ),
    Case(
        "7B, pt, all weights", "7b", "pt", "tiny-text", {"sft_type": "full", "packing": True, "only_save_model": False}
    ),
)


def calculate(case: Case, options: argparse.Namespace, folder: Path) -> dict[str, str]:
    from llmtune.arguments.stages import stage_arguments
    from llmtune.models.devices import find_gpu
    from llmtune.planning.plan import make_plan

    (folder / "config.json").write_text(json.dumps(COMMON | SHAPES[case.shape]), encoding="utf-8")
    gpu = find_gpu(options.gpu)
    args = stage_arguments(case.stage)(
        model_type="qwen2.5-7b-instruct", model_id_or_path=str(folder), dataset=[case.data],
        dtype="bf16", max_length=4096, batch_size=options.batch_size, gradient_accumulation_steps=1, max_steps=1,
        nproc=options.gpus, fsdp=True, **case.flags,
    )  # fmt: skip
    plan = make_plan(args, gpu, options.per_machine)
    one, work = plan.estimate, plan.workload
    computing = one.flops.of(work.computed, work.trainable, work.contexts) / (
        gpu.tflops * 1e12 * options.mfu * plan.ranks
    )
    weights = one.parameters * 2  # gathered in bf16
    gradients = one.trainable * (2 if args.sft_type == "full" else 4)
    moved = (2 * weights + gradients) * (plan.ranks - 1) / plan.ranks
    talking = moved / (options.network * 1e9)
    step = max(computing, talking)
    inside = (2 * weights + gradients) * 7 / 8 / (options.link * 1e9)
    return {
        "memory per GPU": f"{one.total / 2**30:.1f} of {plan.limit / 2**30:.1f} GiB",
        "weights, gradients, optimizer, activations, logits": ", ".join(
            f"{value / 2**30:.1f}" for value in (one.weights, one.gradients, one.optimizer, one.activations, one.logits)
        ),
        "gradient checkpointing": str(plan.args.gradient_checkpointing),
        "tokens per step": f"{work.computed:,}",
        "computing": f"{computing:.2f} s",
        "communication, sharded over all GPUs": f"{talking:.2f} s",
        "communication, sharded within a machine": f"{inside:.2f} s",
        "step": f"{step:.2f} s, {work.computed / step / plan.ranks:,.0f} tokens/s per GPU",
        "checkpoint": f"{sum(one.saved) / 1e9:.1f} GB, "
        f"{sum(one.saved) / (options.disk * 1e9 * options.gpus / options.per_machine):.1f} s by all machines",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", default="H100", help="as `llmtune plan --gpu`")
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--per_machine", type=int, default=8)
    parser.add_argument("--batch_size", type=int, default=2, help="packs of 4,096 tokens per GPU and step")
    parser.add_argument("--mfu", type=float, default=0.4)
    parser.add_argument("--network", type=float, default=50, help="GB/s per GPU between machines: 400 Gb/s")
    parser.add_argument("--link", type=float, default=450, help="GB/s per GPU within a machine: NVLink 4")
    parser.add_argument("--disk", type=float, default=2, help="GB/s that a machine writes")
    options = parser.parse_args()
    found = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as name:
            found[case.name] = calculate(case, options, Path(name))
    print(f"| {options.gpus} {options.gpu} | " + " | ".join(found) + " |")
    print("|---" * (len(found) + 1) + "|")
    for row in next(iter(found.values())):
        print(f"| {row} | " + " | ".join(one[row] for one in found.values()) + " |")


if __name__ == "__main__":
    main()
