"""`--nodes auto`: the fewest machines on which the plan says that the run fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmtune import SftArguments
from llmtune.arguments.launch import LaunchArguments
from llmtune.errors import UsageError
from llmtune.planning.nodes import least_nodes, note
from llmtune.utils.files import write_json

QWEN_72B = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 8192, "intermediate_size": 29568,
    "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 152064,
    "tie_word_embeddings": False, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
}  # fmt: skip


def args_of(folder: Path, **options: Any) -> SftArguments:
    write_json(folder / "config.json", QWEN_72B)
    found = {"model_type": "qwen2.5-72b-instruct", "model_id_or_path": str(folder), "dataset": ["tiny-qa"]}
    return SftArguments(**found | options)


@pytest.mark.medium
def test_sharded_weights_take_as_many_machines_as_they_need(tmp_path):
    args = args_of(tmp_path, sft_type="full", fsdp=True, max_length=2048, dtype="bf16")
    nodes, plan = least_nodes(args, "A100-80", 8)
    assert plan.fits
    assert plan.ranks == nodes * 8
    assert nodes > 1, "16 bytes for each of 72 thousand million parameters are 1.1 TB"
    assert f"{nodes} machines of 8 GPUs" in note(nodes, 8, plan)
    half = least_nodes(args_of(tmp_path, max_length=2048, dtype="bf16", fsdp=True), "A100-80", 8)
    assert half[0] == 1, "LoRA fits on one"


@pytest.mark.medium
def test_more_machines_do_not_help_a_run_that_shards_nothing(tmp_path):
    with pytest.raises(UsageError, match=r"holds the whole model\. Shard it: --fsdp true"):
        least_nodes(args_of(tmp_path, max_length=2048, dtype="bf16"), "A100-80", 8)


@pytest.mark.parametrize(
    ("values", "refusal"),
    [
        ({"nodes": "many"}, "--nodes must be a number of machines, or auto, not 'many'"),
        ({"nodes": "auto"}, "give --gpus and --accelerator"),
        ({"nodes": "auto", "gpus": 0, "accelerator": "A100-80"}, "give --gpus and --accelerator"),
    ],
)
def test_what_is_refused(values, refusal):
    with pytest.raises(UsageError, match=refusal):
        LaunchArguments(slurm=True, **values)


def test_numbers_stay_numbers():
    assert LaunchArguments(slurm=True, nodes=3).num_nodes == 3  # type: ignore[arg-type]
