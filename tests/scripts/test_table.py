"""Every script is what generate.py writes, and its flags are taken: those of the reference and ours."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmtune.arguments.parser import parse
from llmtune.cli.checkpoints import InferCommand
from llmtune.cli.main import main
from llmtune.cli.stages import command_arguments
from llmtune.models.info import MODEL_MAPPING

from .table import FOLDERS, GENERATED, OURS, REFERENCE, SCRIPTS, TABLE, folder_of

# The reference's own words for a few of its 59 folders, and counts over all of them: a second copy of the whole table
# would be no second opinion.
FACTS = {
    "baichuan2-13b-chat-int4/qlora_ddp_ds": {"dtype": "bf16", "max_length": 4096, "sample": -1, "bits": 0},
    "internlm-20b-chat/qlora_ddp": {"targets": ["q_proj", "v_proj"], "zero": None, "nproc": 2, "bits": 4},
    "llama2-70b-chat/qlora_mp": {"device_map": "auto", "nproc": 1, "accumulation": 16, "gpus": "0,1"},
    "qwen-7b-chat/full_mp_ddp": {"dataset": ["medical-en", "medical-zh"], "nproc": 2, "gpus": "0,1,2,3", "flash": True},
    "qwen-7b-chat/full_mp": {"max_length": 8192, "sample": 200000, "nproc": 1, "checkpointing": "none"},
    "qwen-7b-chat/lora_mp_ddp": {"targets": ["c_attn"], "accumulation": 8, "device_map": "auto", "zero": None},
    "qwen-7b-chat-int8/qlora_ddp_ds": {"dtype": "fp16", "bits": 0, "zero": "zero2", "flash": False},
    "qwen-vl/lora_ddp_ds": {"targets": ["c_attn", "attn.c_proj"], "dataset": ["coco-en"], "max_length": 2048},
    "seqgpt-560m/full": {"accumulation": 8, "batch_size": 4, "epochs": 3, "targets": []},
    "seqgpt-560m/full_ddp": {"accumulation": 4, "batch_size": 4, "epochs": 3, "nproc": 2},
}

ONLINE = [row for row in OURS if not row["deepspeed"].startswith("zero3") and "fsdp" not in row["mode"]]
"""Sharded weights cannot generate: those modes have no grpo.sh and no ppo.sh."""


def test_generating_again_changes_nothing():
    code = "import generate, json; print(json.dumps(dict(generate.files())))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=SCRIPTS)
    assert done.returncode == 0, done.stderr
    expected = json.loads(done.stdout)
    assert sorted(map(Path, expected)) == GENERATED
    different = [name for name, text in expected.items() if (SCRIPTS / name).read_text(encoding="utf-8") != text]
    assert not different, "run: python scripts/generate.py"


def test_counts():
    assert len(REFERENCE) == 59
    assert len(OURS) == 54
    assert len({folder_of(row) for row in TABLE}) == len(FOLDERS) == 113
    assert len(GENERATED) == 226 + 4 * len(OURS) + 2 * len(ONLINE)
    assert len(ONLINE) == 45
    assert {str(folder) for folder in FOLDERS} == {folder_of(row) for row in TABLE}
    models = {row["model"] for row in OURS}
    sizes = {f"qwen2.5-{size}-instruct" for size in ("0.5b", "7b", "14b", "72b")}
    assert models == sizes | {"qwen3-8b", "llama3.1-8b-instruct", "llmtune-tiny"}


@pytest.mark.parametrize("script", [*GENERATED, Path("finetune.sh")], ids=str)
def test_begins_with_what_it_needs(script):
    lines = (SCRIPTS / script).read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert any("Needs " in line for line in lines if line.startswith("# "))
    assert max(map(len, lines)) <= 120
    assert len(lines) < 50 or script.name == "finetune.sh"
    assert not any(word in line for line in lines for word in ("hub_token", "push_to_hub", "sdk-token"))
    assert os.access(SCRIPTS / script, os.X_OK)


@pytest.mark.parametrize("row", TABLE, ids=folder_of)
def test_sft_says_what_the_table_says(row, said, elsewhere, capsys):
    gpus, command, *flags = said(f"{folder_of(row)}/sft.sh")
    assert command == "sft"
    args = parse(command_arguments("sft"), flags, command="sft")
    cards = 0 if row["cards"] == "CPU" else int(row["cards"].split(" * ")[0]) if " * " in row["cards"] else 1
    parts = row["mode"].split("_")
    processes = 1 if "ddp" not in parts else 2 if "mp" in parts or not cards else cards
    assert gpus == ",".join(map(str, range(cards)))
    assert (args.model_type, args.template_type, args.dtype) == (row["model"], row["template"], row["dtype"])
    assert args.template_type == MODEL_MAPPING[row["model"]].template
    assert args.dataset == row["dataset"].split()
    assert args.train_dataset_sample == int(row["sample"])
    assert args.max_length == int(row["max_length"])
    assert args.quantization_bit == int(row["bits"] or 0)
    assert args.bnb_4bit_comp_dtype == (row["dtype"] if row["bits"] else None)
    assert args.lora_target_modules == row["targets"].split()
    assert args.gradient_checkpointing == {"true": "full", "false": "none"}.get(*[row["checkpointing"]] * 2)
    assert args.deepspeed_config_path == (row["deepspeed"] or None)
    assert args.use_flash_attn == {"true": True, "false": False, "": None}[row["flash"]]
    assert args.sft_type == ("full" if parts[0] == "full" else "lora")
    assert args.device_map == ("auto" if "mp" in parts else None)
    assert args.fsdp == ("fsdp" in parts)
    assert args.nproc == processes
    assert args.ddp_backend == ("nccl" if processes > 1 and cards else None)
    samples = args.batch_size * args.gradient_accumulation_steps * args.nproc
    assert samples == (32 if row["model"] == "seqgpt-560m" else 16)
    full = args.sft_type == "full"
    if row["model"] != "llmtune-tiny":
        assert args.learning_rate == (2e-5 if full else 1e-4)
        assert (args.eval_steps, args.save_steps) == (100, 100)
    assert (args.weight_decay, args.max_grad_norm) == ((0.01, 1) if full else (0, 0.5))
    assert (args.lora_rank, args.lora_alpha, args.lora_dropout_p, args.warmup_ratio) == (8, 32, 0, 0.03)
    assert args.trust_remote_code == row["model"].startswith("qwen-vl")
    text = (SCRIPTS / folder_of(row) / "sft.sh").read_text(encoding="utf-8")
    assert row["memory"] in text
    named = re.findall(r"\w+", row["cards"])
    assert all(re.search(rf"^# Needs .*\b{name}\b", text, re.M) for name in named)
    assert main(["sft", *flags, "--dry_run", "true"]) == 0
    out = capsys.readouterr().out
    assert ("torchrun --nproc_per_node" in out) == (processes > 1)
    assert f"{samples} samples" in out
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("stage", ["pt", "rm", "dpo", "kto"])
def test_stages_of_current_models_take_the_flags_of_sft_but_for_data_and_rate(stage, said):
    for row in OURS:
        _, command, *flags = said(f"{folder_of(row)}/{stage}.sh")
        assert command == stage
        args = parse(command_arguments(stage), flags, command=stage)
        _, _, *others = said(f"{folder_of(row)}/sft.sh")
        theirs = parse(command_arguments("sft"), others, command="sft")
        same = ("model_type", "sft_type", "dtype", "max_length", "batch_size", "nproc", "deepspeed_config_path", "fsdp")
        assert [getattr(args, name) for name in same] == [getattr(theirs, name) for name in same]
        is_tiny = row["model"] == "llmtune-tiny"
        assert args.learning_rate == (1e-3 if is_tiny else args.LEARNING_RATES[args.sft_type])
        assert args.dataset[0].startswith("tiny-") or (not is_tiny and stage != "pt")
        assert args.output_dir == f"output/{stage}"


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_online_stages_have_whole_groups_and_take_the_flags_of_sft(stage, said):
    for row in ONLINE:
        model = {"REWARD_MODEL": "my model"} if stage == "ppo" else {}
        _, command, *flags = said(f"{folder_of(row)}/{stage}.sh", **model)
        assert command == stage
        args = parse(command_arguments(stage), flags, command=stage)
        _, _, *others = said(f"{folder_of(row)}/sft.sh")
        theirs = parse(command_arguments("sft"), others, command="sft")
        same = ("model_type", "sft_type", "dtype", "max_length", "batch_size", "nproc", "deepspeed_config_path")
        assert [getattr(args, name) for name in same] == [getattr(theirs, name) for name in same]
        assert args.batch_size * args.gradient_accumulation_steps * args.nproc == 64
        assert args.rewards == (["rm:my model"] if stage == "ppo" else ["accuracy"])
        assert args.output_dir == f"output/{stage}"


def test_rewards_of_an_online_stage_are_a_variable(said, tmp_path):
    _, _, *flags = said("qwen2_5_7b_instruct/lora/grpo.sh", REWARDS="accuracy format*0.2")
    assert flags[flags.index("--rewards") + 1 :][:2] == ["accuracy", "format*0.2"]
    newest = tmp_path / "output/rm/qwen2.5-7b-instruct/v10-1/checkpoint-20"
    for folder in (newest, newest.parents[1] / "v9-1/checkpoint-90"):
        folder.mkdir(parents=True)
    _, _, *flags = said("qwen2_5_7b_instruct/lora/ppo.sh", cwd=tmp_path)
    assert flags[flags.index("--rewards") + 1] == f"rm:{newest.relative_to(tmp_path)}"


def test_a_stage_goes_on_from_an_adapter_and_other_rows(said, elsewhere):
    _, _, *flags = said("qwen2_5_7b_instruct/lora/dpo.sh", DATA="mine.jsonl", PEFT="my adapter")
    assert flags[flags.index("--dataset") + 1] == "mine.jsonl"
    assert flags[flags.index("--peft_path") + 1] == "my adapter"
    _, _, *full = said("qwen2_5_7b_instruct/full_mp/dpo.sh", PEFT="my adapter")
    assert "--peft_path" not in full


@pytest.mark.parametrize("name", FACTS)
def test_reference(name, said):
    """A second reading of the reference's table."""
    row = next(row for row in REFERENCE if name == f"{row['model']}/{row['mode']}")
    gpus, _, *flags = said(f"{folder_of(row)}/sft.sh")
    args = parse(command_arguments("sft"), flags, command="sft")
    found = {
        "dtype": args.dtype,
        "max_length": args.max_length,
        "sample": args.train_dataset_sample,
        "bits": args.quantization_bit,
        "targets": args.lora_target_modules,
        "zero": args.deepspeed_config_path,
        "nproc": args.nproc,
        "device_map": args.device_map,
        "accumulation": args.gradient_accumulation_steps,
        "gpus": gpus,
        "dataset": args.dataset,
        "flash": args.use_flash_attn,
        "checkpointing": args.gradient_checkpointing,
        "batch_size": args.batch_size,
        "epochs": args.num_train_epochs,
    }
    assert {key: found[key] for key in FACTS[name]} == FACTS[name]


MENDED = {
    "template": {
        "mistral-7b-chat": ("llama", "mistral"),
        "internlm-20b": ("default-generation", "default-generation-bos"),
        "qwen-vl": ("default", "default-generation"),
    },
    "cards": {"internlm-20b/lora_ddp": ("A100 (no mem line)", "2 * A100")},
    "memory": {"qwen-14b/lora_ddp_ds": ('2 * 32GB (typo "32B" in source)', "2 * 32GB")},
    "max_length": dict.fromkeys(["qwen-7b-chat/full_mp", "qwen-7b-chat/full_mp_ddp"], ("8192 (infer 6144)", "8192")),
}


def test_every_value_is_the_reference_s(assets):
    """Its page, cell by cell, but for what generate.py says to be mended."""
    page = assets / "reference/seed_system_facts.md"
    if not page.is_file():
        pytest.skip(f"there is no {page}")
    lines = [
        line for line in page.read_text(encoding="utf-8").splitlines() if re.match(r"\| [a-z]\w+/[a-z_]+ \| ", line)
    ]
    lines = [line for line in lines if "model/mode" not in line and line.count("|") == 15]
    assert len(lines) == 59
    for line, row in zip(lines, REFERENCE, strict=True):
        name, needs, gpus, dtype, template, data, length, bits, targets, checkpointing, steps, zero, flash, infer = (
            "" if cell.strip() == "-" else cell.strip() for cell in line.strip("|").split("|")
        )
        cards, _, memory = needs.partition("; ")
        dataset, sample = re.match(r"(.+) \((-?\d+)", data).groups()
        infer_cards, _, new_tokens = infer.split("; ")
        assert name == folder_of(row)
        found = {"cards": cards, "memory": memory, "dtype": dtype, "template": template, "dataset": dataset}
        found |= {"sample": sample, "max_length": length, "bits": bits, "targets": targets, "flash": flash}
        found |= {"checkpointing": checkpointing, "deepspeed": "zero2" if zero == "y" else ""}
        found |= {"infer_cards": infer_cards, "max_new_tokens": new_tokens}
        for column, mended in MENDED.items():
            if change := mended.get(row["model"]) or mended.get(f"{row['model']}/{row['mode']}"):
                assert found[column] == change[0]
                found[column] = change[1]
        assert found == {key: value for key, value in row.items() if key in found}
        processes = int(gpus.split(" / ")[1])
        assert ("/N" in steps) == (processes > 1)
        assert ("ddp" in row["mode"]) == (processes > 1)


def test_reference_counts():
    """Counted in the reference's own page, not in ours."""

    def count(column, value):
        return sum(row[column] == value for row in REFERENCE)

    assert len({row["model"] for row in REFERENCE}) == 30
    assert count("deepspeed", "zero2") == 30
    assert count("bits", "4") == 25
    assert count("dtype", "fp16") == 10
    assert count("max_length", "8192") == 2
    assert count("checkpointing", "false") == 7
    assert count("dataset", "damo-agent-mini-zh") == 18
    assert sum("ddp" in row["mode"] for row in REFERENCE) == 40
    assert sum("mp" in row["mode"].split("_") for row in REFERENCE) == 5
    assert sum(not row["memory"] for row in REFERENCE) == 1


@pytest.mark.parametrize("row", TABLE, ids=folder_of)
def test_infer_says_what_the_table_says(row, said, elsewhere):
    checkpoint = elsewhere / "checkpoint-9"
    checkpoint.mkdir()
    full = row["mode"].startswith("full")
    (checkpoint / ("config.json" if full else "adapter_config.json")).write_text("{}")
    _, _, *trained = said(f"{folder_of(row)}/sft.sh")
    saved = vars(parse(command_arguments("sft"), trained, command="sft"))
    (checkpoint / "sft_args.json").write_text(json.dumps(saved))
    gpus, command, *flags = said(f"{folder_of(row)}/infer.sh", CKPT_DIR=str(checkpoint))
    assert command == "infer"
    args = parse(InferCommand, flags, command="infer")
    cards = row["infer_cards"]
    number = 0 if cards == "CPU" else int(cards.split(" * ")[0]) if " * " in cards else 1
    assert gpus == ",".join(map(str, range(number)))
    assert args.device_map == ("auto" if number > 1 else None)
    assert args.max_new_tokens == int(row["max_new_tokens"])
    assert (args.temperature, args.top_k, args.top_p, args.do_sample) == (0.9, 20, 0.9, True)
    assert (args.model_type, args.dtype, args.max_length) == (row["model"], row["dtype"], int(row["max_length"]))
    assert (args.dataset, args.quantization_bit) == (row["dataset"].split(), int(row["bits"] or 0))
    assert args.template_type == row["template"]
    assert args.use_flash_attn == saved["use_flash_attn"]
    assert args.eval_human is False
    assert main(["infer", *flags, "--dry_run", "true"]) == 0


def test_variables_and_flags_behind_the_name(said):
    script = "qwen_7b_chat/qlora_ddp_ds/sft.sh"
    gpus, _, *flags = said(
        script, "--max_length", "99", "--dataset", "tiny-qa", NPROC="4", CUDA_VISIBLE_DEVICES="4,5,6,7"
    )
    args = parse(command_arguments("sft"), flags, command="sft")
    assert (gpus, args.nproc, args.gradient_accumulation_steps) == ("4,5,6,7", 4, 4)
    assert (args.max_length, args.dataset) == (99, ["tiny-qa"])


def test_infer_takes_the_newest_checkpoint(tmp_path):
    for name in ("v2-x/checkpoint-100", "v10-x/checkpoint-50", "v10-x/checkpoint-200", "v11-x/checkpoint-300"):
        folder = tmp_path / "output/llmtune-tiny" / name
        folder.mkdir(parents=True)
        (folder / ("config.json" if "v11" in name else "adapter_config.json")).touch()
    stub = tmp_path / "llmtune"
    stub.write_text('#!/usr/bin/env bash\necho "$@"\n')
    stub.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def chosen(mode, **options):
        script = SCRIPTS / "llmtune_tiny" / mode / "infer.sh"
        return subprocess.run(
            ["bash", script], capture_output=True, text=True, cwd=tmp_path, env=environment, **options
        )

    assert "--ckpt_dir output/llmtune-tiny/v10-x/checkpoint-200 " in chosen("lora").stdout
    assert "--ckpt_dir output/llmtune-tiny/v11-x/checkpoint-300 " in chosen("full").stdout
    (tmp_path / "output").rename(tmp_path / "gone")
    done = chosen("lora")
    assert done.returncode != 0
    assert "run sft.sh first" in done.stderr
