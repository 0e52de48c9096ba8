"""Writes scripts/<model>/<mode>/{sft,infer}.sh from table.csv and estimates.json: python scripts/generate.py

The current models, those behind the reference's, have pt.sh, rm.sh, dpo.sh, kto.sh, grpo.sh and ppo.sh beside them;
the latter two not where weights are sharded (ZeRO-3, FSDP2), which cannot generate.

The first 59 rows are those of the reference's table; fixed in them:
- mistral-7b-chat, internlm-20b and qwen-vl take the template of their entry instead of llama, one without the token
  that begins a text, and the chatty default;
- qwen-7b-chat/full_mp and full_mp_ddp answer with the 8192 tokens that they were trained with (6144 there): like all
  infer.sh, they read model, template, data, lengths and bits from the checkpoint;
- full_mp_ddp names its backend like the others; internlm-20b/lora_ddp asks for its two GPUs, and has a memory note;
- qwen-14b/lora_ddp_ds has 32GB, not 32B; hub ids that name another mode are left out with everything of pushing;
- int4 and int8 models keep the folder name qlora: their weights come quantised, so there is no --quantization_bit.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

HERE = Path(__file__).resolve().parent
NUM_REFERENCE = 59
TINY = "llmtune-tiny"

Flags = list[tuple[str, object]]

# What differs from the usual values, by model.
SPECIAL: dict[str, dict[str, object]] = {
    # only_save_model: of 560M parameters the optimizer's state is small, so that a run can be resumed
    "seqgpt-560m": {"epochs": 3, "batch_size": 4, "samples": 32, "only_save_model": "false"},
    TINY: {"epochs": 2, "batch_size": 4, "learning_rate": "1e-3", "every": 50},
}


@dataclass(frozen=True)
class Mode:
    """A row of table.csv."""

    model: str
    mode: str
    cards: str
    memory: str
    dtype: str
    template: str
    dataset: str
    sample: str
    max_length: str
    bits: str
    targets: str
    checkpointing: str
    deepspeed: str
    flash: str
    infer_cards: str
    max_new_tokens: str

    @property
    def folder(self) -> str:
        return f"{re.sub('[.-]', '_', self.model)}/{self.mode}"

    @property
    def parts(self) -> list[str]:
        return self.mode.split("_")

    @property
    def is_full(self) -> bool:
        return self.parts[0] == "full"

    @property
    def nproc(self) -> int:
        if "ddp" not in self.parts:
            return 1
        return 2 if "mp" in self.parts or self.cards == "CPU" else number(self.cards)

    @property
    def has_divided_states(self) -> bool:
        """Weights, gradients and optimizer are divided among the processes, or in the memory of the machine."""
        return self.is_full and self.deepspeed.startswith("zero3")

    @property
    def is_sharded(self) -> bool:
        """Weights are sharded, so that they cannot generate."""
        return self.deepspeed.startswith("zero3") or "fsdp" in self.parts

    @property
    def sees(self) -> bool:
        """Sees images, by code of its own."""
        return self.model.startswith("qwen-vl")

    def special(self, name: str, usual: object) -> object:
        return SPECIAL.get(self.model, {}).get(name, usual)


def number(cards: str) -> int:
    """Of GPUs: `2 * A10` are two; `A10, 3090` names two kinds of one."""
    return int(cards.split(" * ")[0]) if " * " in cards else 1


def named(cards: str) -> str:
    """`A10, 3090` as a text: one A10 or 3090."""
    if " * " in cards or cards == "CPU":
        return cards.replace("CPU", "any CPU")
    *others, last = cards.split(", ")
    return f"one {', '.join(others)}{' or ' if others else ''}{last}"


def read_table() -> list[Mode]:
    with (HERE / "table.csv").open(encoding="utf-8", newline="") as file:
        return [Mode(**{field.name: row[field.name] for field in fields(Mode)}) for row in csv.DictReader(file)]


def files() -> Iterator[tuple[str, str]]:
    """Paths below scripts/, and what they hold."""
    estimates = json.loads((HERE / "estimates.json").read_text(encoding="utf-8"))
    for number_of_row, mode in enumerate(read_table()):
        yield f"{mode.folder}/sft.sh", sft_script(mode, estimates.get(f"{mode.model}/{mode.mode}"))
        yield f"{mode.folder}/infer.sh", infer_script(mode)
        for stage in STAGES.values() if number_of_row >= NUM_REFERENCE else ():
            if not (stage.is_online and mode.is_sharded):
                yield f"{mode.folder}/{stage.name}.sh", stage_script(mode, stage)


@dataclass(frozen=True)
class Stage:
    """A stage beside sft. `dataset`: of real models; `tiny`: of the embedded one; `rewards`: of an online stage."""

    name: str
    about: str
    dataset: str
    tiny: str
    rewards: str = ""

    @property
    def is_online(self) -> bool:
        return bool(self.rewards)


RESPONSES = 64
"""Of an optimizer step: eight prompts with eight responses of grpo."""
ABOUT_REWARDS = {
    "grpo": "# REWARDS='accuracy my_rewards.py:fn*0.5' are other rewards: llmtune list rewards.",
    "ppo": "# REWARD_MODEL=FOLDER is the reward model, else the newest checkpoint of rm.sh.",
}

STAGES = {
    stage.name: stage
    for stage in (
        Stage("pt", "Continues pre-training on documents", "tiny-text", "tiny-text"),
        Stage("rm", "Trains a reward model on pairs of responses", "ultrafeedback-binarized", "tiny-pairs"),
        Stage("dpo", "Trains on pairs of responses", "ultrafeedback-binarized", "tiny-pairs"),
        Stage("kto", "Trains on responses that are labelled good or bad", "kto-mix-14k", "tiny-labels"),
        Stage(
            "grpo",
            "Samples responses and trains on their rewards, compared within each group",
            "numinamath-cot",
            "tiny-sums",
            "${REWARDS:-accuracy}",
        ),
        Stage(
            "ppo",
            "Samples responses and trains on the scores of a reward model, with a critic",
            "alpaca-en",
            "tiny-qa",
            '"rm:${REWARD_MODEL:?run rm.sh first, or say which reward model}"',
        ),
    )
}


def stage_script(mode: Mode, stage: Stage) -> str:
    """The script of another stage: the flags of sft but for data, and for the learning rate, which is the default."""
    lines = [
        "#!/usr/bin/env bash",
        f"# {mode.model}: {what(mode)}.",
        f"# {stage.about}.",
        f"# Needs {named(mode.cards)}; how much memory, llmtune plan {stage.name} tells with the flags below.",
        "# DATA=FILE or a key trains on other rows, PEFT=FOLDER goes on from your adapter.",
        "# Flags behind the script's name win. Run it from the root of the repository.",
        "# Generated by scripts/generate.py.",
    ]
    if stage.is_online:
        lines[4:4] = [ABOUT_REWARDS[stage.name]]
    if mode.nproc > 1:
        lines.append(f"NPROC=${{NPROC:-{mode.nproc}}}")
    if stage.name == "ppo":
        newest = f"output/rm/{mode.model}/v*/checkpoint-*"
        lines.append(f"REWARD_MODEL=${{REWARD_MODEL:-$(ls -d {newest} 2>/dev/null | sort -V | tail -1)}}")
    dataset = stage.tiny if mode.model == TINY else stage.dataset
    changed: dict[str, object] = {"output_dir": f"output/{stage.name}", "dataset": f'"${{DATA:-{dataset}}}"'}
    if stage.is_online:
        changed["gradient_accumulation_steps"] = accumulation(mode, RESPONSES)
    left_out = ["learning_rate"] if mode.model != TINY else []
    # Documents need no template, and only varlen attention computes a prompt once for all its responses.
    left_out += ["template_type"] if stage.name == "pt" else ["use_flash_attn"]
    flags = [(name, changed.get(name, value)) for name, value in sft_flags(mode) if name not in left_out]
    if stage.is_online:
        flags += [("rewards", stage.rewards), ("max_new_tokens", 16 if mode.model == TINY else 512)]
    more = [] if mode.is_full else ['    ${PEFT:+--peft_path "$PEFT"} \\']
    body = command(stage.name, flags, mode.cards)
    return "\n".join([*lines, *body[:-1], *more, body[-1]]) + "\n"


def sft_script(mode: Mode, estimate: float | None) -> str:
    lines = [
        "#!/usr/bin/env bash",
        f"# {mode.model}: {what(mode)}.",
        f"# Needs {needs(mode, estimate)}.",
        *origin(mode),
        "# Flags behind the script's name win: --max_length 1024, say; --dry_run true shows what would run.",
        "# Run it from the top of the repository. Written by scripts/generate.py.",
    ]
    if mode.nproc > 1:
        lines.append(f"NPROC=${{NPROC:-{mode.nproc}}}")
    return "\n".join([*lines, *command("sft", sft_flags(mode), mode.cards)]) + "\n"


def what(mode: Mode) -> str:
    parts = mode.parts
    text = {"lora": "LoRA", "qlora": "QLoRA", "full": "all the weights"}[parts[0]]
    if "mp" in parts:
        text += f", layers over {number(mode.cards) // mode.nproc} GPUs"
    if mode.nproc > 1:
        text += f", {mode.nproc} processes"
    if mode.deepspeed:
        text += f", {mode.deepspeed.replace('zero', 'ZeRO-').replace('_', ' with ')}"
    return text + (", FSDP2" if "fsdp" in parts else "")


def needs(mode: Mode, estimate: float | None) -> str:
    if mode.cards == "CPU":
        return f"any CPU and about {mode.memory} of memory{' a process' if mode.nproc > 1 else ''}; downloads nothing"
    if mode.memory:
        return f"{named(mode.cards)} and about {mode.memory} of GPU memory, as noted in 2023"
    assert estimate is not None, f"{mode.folder}: run estimate.py"
    cards = named(mode.cards)
    if mode.has_divided_states:
        states = "weights, gradients and Adam at 16 bytes a parameter"
        place = (
            f"the machine's memory for {states}"
            if "offload" in mode.deepspeed
            else f"each for {states}, not activations"
        )
        return f"{cards}; {estimate:g}GB {'of' if 'offload' in mode.deepspeed else 'on'} {place}"
    each = "each" if number(mode.cards) > 1 else "it"
    place = f"{number(mode.cards) // mode.nproc} GPUs together" if "mp" in mode.parts else each
    how = "without" if mode.checkpointing == "false" else "with full"
    return f"{cards}; {estimate:g}GB on {place} {how} checkpointing, an estimate of llmtune plan"


def origin(mode: Mode) -> list[str]:
    lines = []
    if mode.model.endswith(("int4", "int8")):
        lines.append("# The weights come quantised, so there is no --quantization_bit.")
    if mode.sees:
        lines.append("# It sees images by Python code that comes with the checkpoint: read it before you trust it.")
    if mode.model == TINY and not mode.is_full:
        lines.append(
            "# Random weights learn little by adapters: MODEL=CHECKPOINT_FOLDER puts them on what ../full left."
        )
    return lines


def sft_flags(mode: Mode) -> Flags:
    batch = int(str(mode.special("batch_size", 1)))
    steps = mode.special("every", 100)
    flags: Flags = [("model_type", mode.model)]
    if mode.model == TINY and not mode.is_full:
        flags.append(("model_id_or_path", f'"${{MODEL:-{TINY}}}"'))
    flags += trusted(mode)
    flags += [("sft_type", "full" if mode.is_full else "lora"), ("template_type", mode.template), ("dtype", mode.dtype)]
    flags += [("output_dir", "output"), ("dataset", mode.dataset), ("train_dataset_sample", mode.sample)]
    flags += [("num_train_epochs", mode.special("epochs", 1)), ("max_length", mode.max_length)]
    if not mode.is_full:
        flags += [("lora_rank", 8), ("lora_alpha", 32), ("lora_dropout_p", "0."), ("lora_target_modules", mode.targets)]
    if mode.bits:
        flags += [("quantization_bit", mode.bits), ("bnb_4bit_comp_dtype", mode.dtype)]
    flags += [("gradient_checkpointing", mode.checkpointing), ("batch_size", batch)]
    many = mode.nproc > 1
    flags += [("gradient_accumulation_steps", accumulation(mode, int(str(mode.special("samples", 16)))))]
    flags += [("learning_rate", mode.special("learning_rate", "2e-5" if mode.is_full else "1e-4"))]
    flags += [("weight_decay", "0.01" if mode.is_full else "0."), ("max_grad_norm", "1" if mode.is_full else "0.5")]
    flags += [("warmup_ratio", 0.03), ("eval_steps", steps), ("save_steps", steps), ("save_total_limit", 2)]
    flags += [("logging_steps", 10)]
    if mode.is_full or mode.deepspeed:
        # FSDP2 saves its parts with what resuming needs, or not at all
        flags += [("only_save_model", mode.special("only_save_model", "false" if "fsdp" in mode.parts else "true"))]
    flags += attention(mode)
    if "mp" in mode.parts:
        flags += [("device_map", "auto")]
    if many:
        flags += [("nproc", '"$NPROC"')]
        flags += [("ddp_backend", "nccl")] if mode.cards != "CPU" else []
    if mode.deepspeed:
        flags += [("deepspeed_config_path", mode.deepspeed)]
    if "fsdp" in mode.parts:
        flags += [("fsdp", "true")]
    return flags


def accumulation(mode: Mode, samples: int) -> object:
    """Micro-batches per optimizer step on each process."""
    batch = int(str(mode.special("batch_size", 1)))
    return f"$(({samples} / NPROC{f' / {batch}' if batch > 1 else ''}))" if mode.nproc > 1 else samples // batch


def infer_script(mode: Mode) -> str:
    mark = "config.json" if mode.is_full else "adapter_config.json"
    flags: Flags = [("ckpt_dir", '"${CKPT_DIR:?run sft.sh first, or say which checkpoint folder}"')]
    flags += [*trusted(mode), *attention(mode)]
    if number(mode.infer_cards) > 1:
        flags += [("device_map", "auto")]
    flags += [("eval_human", "false"), ("max_new_tokens", mode.max_new_tokens), ("temperature", 0.9), ("top_k", 20)]
    flags += [("top_p", 0.9), ("do_sample", "true")]
    flags += [] if mode.is_full else [("merge_lora_and_save", "false")]
    lines = [
        "#!/usr/bin/env bash",
        f"# Generates responses for the rows that sft.sh beside this file held out. Needs {named(mode.infer_cards)}.",
        "# Uses the newest checkpoint, or CKPT_DIR=FOLDER, which has model, template, data, lengths and bits.",
        "# Chat: --eval_human true. Run it from the root of the repository. Generated by scripts/generate.py.",
        f"MARK={mark}",
        f"CKPT_DIR=${{CKPT_DIR:-$(ls -d output/{mode.model}/v*/checkpoint-*/$MARK 2>/dev/null | sort -V | tail -1)}}",
        'CKPT_DIR=${CKPT_DIR%/"$MARK"}',
    ]
    return "\n".join([*lines, *command("infer", flags, mode.infer_cards)]) + "\n"


def trusted(mode: Mode) -> Flags:
    return [("trust_remote_code", "true")] if mode.sees else []


def attention(mode: Mode) -> Flags:
    return [("use_flash_attn", mode.flash)] if mode.flash else []


def command(name: str, flags: Flags, cards: str) -> list[str]:
    gpus = ",".join(map(str, range(number(cards))))
    visible = [] if cards == "CPU" else [f"CUDA_VISIBLE_DEVICES=${{CUDA_VISIBLE_DEVICES:-{gpus}}} \\"]
    return [*visible, f"llmtune {name} \\", *(f"    --{flag} {value} \\" for flag, value in flags), '    "$@"']


def main() -> None:
    for name, text in files():
        file = HERE / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        file.chmod(0o755)


if __name__ == "__main__":
    main()
