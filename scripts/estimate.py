"""Writes estimates.json, the memory notes of rows of table.csv that have none: python scripts/estimate.py [MODEL]

`llmtune plan` computes them from the shapes in configs.json, for rows of --max_length tokens; where checkpointing is
auto, with full, the least that a run can do with. Of ZeRO-3 over all the weights only weights, gradients and Adam's
states are given, 16 bytes a parameter (https://arxiv.org/abs/1910.02054, section 3.1). GB are 10^9 bytes. Nobody
measured any of them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from generate import HERE, Mode, read_table

from llmtune.arguments.stage import SftArguments
from llmtune.models.devices import find_gpu
from llmtune.planning.plan import make_plan


def estimate(mode: Mode, config: dict[str, object]) -> float:
    """GB on one GPU; of models spread by a device map, on all GPUs of a process together."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        args = SftArguments(
            model_type=mode.model,
            model_id_or_path=folder,
            dataset=["tiny-qa"],
            sft_type="full" if mode.is_full else "lora",
            dtype=mode.dtype,
            max_length=int(mode.max_length),
            lora_target_modules=mode.targets.split(),
            quantization_bit=int(mode.bits or 0),
            gradient_checkpointing="none" if mode.checkpointing == "false" else "full",
            nproc=mode.nproc,
            deepspeed_config_path=mode.deepspeed or None,
        )
        gpu = find_gpu(mode.cards.split(" * ")[-1])
        found = make_plan(args, gpu).estimate
    if not mode.has_divided_states:
        return round(found.total / 1e9, 1)
    return round(16 * found.parameters / (1 if "offload" in mode.deepspeed else mode.nproc) / 1e9, 1)


def main(only: str = "") -> None:
    configs = json.loads((HERE / "configs.json").read_text(encoding="utf-8"))
    file = HERE / "estimates.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for mode in read_table():
        if not mode.memory and only in mode.model:
            found[f"{mode.model}/{mode.mode}"] = estimate(mode, configs[mode.model])
            print(mode.model, mode.mode, mode.cards, found[f"{mode.model}/{mode.mode}"], flush=True)
    file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
