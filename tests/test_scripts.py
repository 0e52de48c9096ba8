"""Every script is what generate.py writes, its flags are taken, and the embedded model's own run."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmtune.cli.infer import InferCommand
from llmtune.cli.main import main
from llmtune.cli.parser import parse
from llmtune.cli.sft import SftCommand
from llmtune.models.info import MODEL_MAPPING

from . import prepared

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"
GENERATED = sorted(path.relative_to(SCRIPTS) for path in SCRIPTS.glob("*/*/*.sh"))
FOLDERS = sorted({path.parent for path in GENERATED})
TABLE = list(csv.DictReader((SCRIPTS / "table.csv").read_text(encoding="utf-8").splitlines()))
REFERENCE, OURS = TABLE[:59], TABLE[59:]

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


def folder_of(row):
    return f"{re.sub('[.-]', '_', row['model'])}/{row['mode']}"


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """(script, flags) -> the words that bash gives to `llmtune`, and the GPUs that it may see."""
    stubs = tmp_path_factory.mktemp("stub")
    (stubs / "llmtune").write_text('#!/usr/bin/env bash\nprintf "%s\\0" "${CUDA_VISIBLE_DEVICES-}" "$@"\n')
    (stubs / "llmtune").chmod(0o755)
    made: dict[str, list[str]] = {}

    def words(script, *flags, cwd=stubs, **variables):
        kept = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
        environment = kept | {"PATH": f"{stubs}:{os.environ['PATH']}"} | variables
        done = subprocess.run(["bash", SCRIPTS / script, *flags], capture_output=True, env=environment, cwd=cwd)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().split("\0")[:-1]

    def once(script, *flags, **variables):
        key = repr((script, flags, variables))
        if key not in made:
            made[key] = words(script, *flags, **variables)
        return made[key]

    return once


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("NNODES", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


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
    assert len(GENERATED) == 226
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
    args = parse(SftCommand, flags, command="sft")
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


@pytest.mark.parametrize("name", FACTS)
def test_reference(name, said):
    """A second reading of the reference's table."""
    row = next(row for row in REFERENCE if name == f"{row['model']}/{row['mode']}")
    gpus, _, *flags = said(f"{folder_of(row)}/sft.sh")
    args = parse(SftCommand, flags, command="sft")
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
    saved = vars(parse(SftCommand, trained, command="sft"))
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
    args = parse(SftCommand, flags, command="sft")
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


# finetune.sh


@pytest.mark.parametrize(
    ("flags", "variables", "expected"),
    [
        (
            "-m a/b -d x.jsonl",
            {},
            "--model_id_or_path a/b --dataset x.jsonl --output_dir output --sft_type full --nproc 1",
        ),
        ("--model llmtune-tiny --data tiny-qa", {}, "--model_type llmtune-tiny --dataset tiny-qa"),
        ("", {"MODEL": "a/b", "DATA": "x y"}, "--model_id_or_path a/b --dataset x y"),
        ("-m a/b -d x", {"GPUS_PER_NODE": "4"}, "--sft_type full --nproc 4 --deepspeed_config_path zero3"),
        ("-m a/b -d x", {"CUDA_VISIBLE_DEVICES": "2,5"}, "--nproc 2 --deepspeed_config_path zero3"),
        (
            "-m a/b -d x",
            {"CUDA_VISIBLE_DEVICES": "0,1", "USE_LORA": "True"},
            "lora --nproc 2 --deepspeed_config_path zero2",
        ),
        ("-m a/b -d x --use_lora True", {}, "--sft_type lora --nproc 1"),
        ("-m a/b -d x", {"Q_LORA": "True"}, "--sft_type lora --quantization_bit 4 --nproc 1"),
        ("-m Qwen/Qwen-7B-Chat-Int4 -d x --q_lora True", {}, "--sft_type lora --nproc 1"),
        ("-m a/b -d x", {"USE_LORA": "False", "Q_LORA": "False"}, "--sft_type full --nproc 1"),
        ("-m a/b -d x --deepspeed finetune/ds_config_zero2.json", {}, "--nproc 1 --deepspeed_config_path zero2"),
        ("-m a/b -d x", {"DS_CONFIG_PATH": "zero3_offload"}, "--deepspeed_config_path zero3_offload"),
        ("-m a/b -d x --deepspeed none", {"GPUS_PER_NODE": "2"}, "--sft_type full --nproc 2"),
        ("-m a/b -d x", {"GPUS_PER_NODE": "1", "NNODES": "2"}, "--nproc 1 --deepspeed_config_path zero3"),
        ("-m a/b -d x", {"OUTPUT_DIR": "runs"}, "--output_dir runs"),
        ("-m a/b -d x --max_length 64 --packing true", {}, "--nproc 1 --max_length 64 --packing true"),
    ],
)
def test_finetune(said, flags, variables, expected):
    gpus, command, *words = said("finetune.sh", *flags.split(), **({"CUDA_VISIBLE_DEVICES": ""} | variables))
    assert command == "sft"
    text = " ".join(words)
    assert expected in text
    assert ("--deepspeed_config_path" in text) == ("--deepspeed_config_path" in expected)
    assert ("--quantization_bit" in text) == ("--quantization_bit" in expected)
    assert gpus == variables.get("CUDA_VISIBLE_DEVICES", "")


def test_finetune_below_a_base_path(said, tmp_path):
    (tmp_path / "models/mine").mkdir(parents=True)
    (tmp_path / "my rows.jsonl").touch()
    variables = {"BASE_PATH": str(tmp_path), "MODEL": "models/mine", "OUTPUT_DIR": "runs", "CUDA_VISIBLE_DEVICES": ""}
    _, _, *words = said("finetune.sh", DATA="my rows.jsonl", **variables)
    assert words[:6] == [
        *("--model_id_or_path", f"{tmp_path}/models/mine", "--dataset", f"{tmp_path}/my rows.jsonl"),
        *("--output_dir", f"{tmp_path}/runs"),
    ]
    _, _, *words = said("finetune.sh", DATA="tiny-qa", **variables)
    assert words[3] == "tiny-qa"


def finetune(*flags, folder, llmtune="exit 9", **variables):
    """Run it with an `llmtune` of this body."""
    stub = folder / "bin/llmtune"
    stub.parent.mkdir(exist_ok=True)
    stub.write_text(f"#!/usr/bin/env bash\n{llmtune}\n")
    stub.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name not in ("NNODES", "MODEL", "DATA")}
    environment = kept | {"PATH": f"{stub.parent}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": ""} | variables
    command = ["bash", SCRIPTS / "finetune.sh", *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


LLMTUNE = f'exec "{sys.executable}" -m llmtune "$@"'


def test_finetune_usage(tmp_path):
    for flag in ("-h", "--help"):
        done = finetune(flag, folder=tmp_path)
        assert done.returncode == 0
        variables = "MODEL DATA DS_CONFIG_PATH USE_LORA Q_LORA OUTPUT_DIR GPUS_PER_NODE NNODES NODE_RANK MASTER_ADDR"
        assert all(name in done.stdout for name in [*variables.split(), "MASTER_PORT", "BASE_PATH", "--deepspeed"])
    for flags, said in ([(), "-m MODEL"], [("-m", "a/b"), "-d DATA"], [("-m",), "-m needs a value"]):
        done = finetune(*flags, folder=tmp_path)
        assert done.returncode == 2
        assert said in done.stderr


def test_finetune_on_several_machines(tmp_path):
    """Its variables reach torchrun's own line."""
    variables = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "GPUS_PER_NODE": "8", "USE_LORA": "True"}
    flags = ["-m", "Qwen/Qwen2.5-7B-Instruct", "-d", "alpaca-zh", "--dry_run", "true"]
    done = finetune(*flags, folder=tmp_path, llmtune=LLMTUNE, **variables)
    assert done.returncode == 0, done.stderr
    assert "--nproc_per_node 8 --nnodes 2 --node_rank 1 --master_addr 10.0.0.1 --master_port 29500" in done.stdout
    assert "ZeRO-2" in done.stdout
    assert "256 samples (1 x 16 x 16 processes)" in done.stdout


@pytest.mark.slow
def test_finetune_runs(tmp_path):
    flags = ["-m", "llmtune-tiny", "-d", "tiny-qa#40", "--use_lora", "True", "--max_steps", "2"]
    done = finetune(*flags, folder=tmp_path, llmtune=LLMTUNE, OUTPUT_DIR="runs")
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("runs/llmtune-tiny/v0-*/checkpoint-2/adapter_model.safetensors"))


# What the embedded model can do on a CPU

ACTIVE = {
    "lora": "Trained are 108,544 of 2,077,632 parameters",
    "qlora": "28 of 29 linear layers are quantised to 4 bits",
    "full": "Trained are 1,969,088 of 1,969,088 parameters",
    "lora_ddp": "DDP over 2 processes (gloo)",
    "full_ddp": "DDP over 2 processes (gloo)",
    "lora_ddp_ds": "DeepSpeed ZeRO-2 over 2 processes (gloo)",
    "full_ddp_ds": "DeepSpeed ZeRO-3 over 2 processes (gloo)",
    "full_ddp_fsdp": "FSDP2 over 2 processes (gloo), each with",
}


ANSWERING = ("lora", "qlora", "full_ddp_ds", "full_ddp_fsdp")
"""Modes whose checkpoints differ in kind; the others' infer.sh is one of these but for its path."""


def test_every_tiny_mode_is_run():
    assert set(ACTIVE) == {row["mode"] for row in OURS if row["model"] == "llmtune-tiny"}


BY_HAND = "full_ddp_ds"
"""Its sft.sh starts what a user's does: bash, llmtune, torchrun, two processes. The others' words are run prepared."""
SHORT = ("--max_steps", "2", "--eval_steps", "2", "--save_steps", "2", "--dataset", "tiny-qa#60")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ACTIVE)
def test_tiny_runs_and_answers(mode, tmp_path, said):
    def run(name, *flags):
        gpus, *words = said(f"llmtune_tiny/{mode}/{name}", *flags, cwd=tmp_path)
        nproc = int(words[words.index("--nproc") + 1]) if "--nproc" in words else 1
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": gpus}
        started = prepared.start(
            *prepared.LLMTUNE, *words, folder=tmp_path, cwd=tmp_path, nproc=nproc, environment=environment
        )
        started.check()
        return started.said()

    text = start_by_hand(mode, tmp_path) if mode == BY_HAND else run("sft.sh", *SHORT)
    assert ACTIVE[mode] in text
    (checkpoint,) = tmp_path.glob("output/llmtune-tiny/v0-*/checkpoint-2")
    if mode not in ANSWERING:
        return
    text = run("infer.sh", "--show_dataset_sample", "1", "--max_new_tokens", "4")
    assert "[OUTPUT]" in text
    (result,) = checkpoint.glob("infer_result_*.jsonl")
    assert json.loads(result.read_text(encoding="utf-8"))["query"]


def start_by_hand(mode, folder):
    stub = folder / "bin/llmtune"
    stub.parent.mkdir()
    stub.write_text(f"#!/usr/bin/env bash\n{LLMTUNE}\n")
    stub.chmod(0o755)
    environment = os.environ | {"PATH": f"{stub.parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    command = ["bash", SCRIPTS / "llmtune_tiny" / mode / "sft.sh", *SHORT]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=400)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_an_estimate_is_that_of_plan():
    """python scripts/estimate.py writes them; one of them stands for all, which take two minutes."""
    code = (
        "import estimate, json\n"
        "configs = json.loads((estimate.HERE / 'configs.json').read_text())\n"
        "(mode,) = [one for one in estimate.read_table() if one.folder == 'qwen2_5_0_5b_instruct/qlora_ddp_ds']\n"
        "print(estimate.estimate(mode, configs[mode.model]))"
    )
    environment = os.environ | {"PYTHONPATH": f"{SCRIPTS}:{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=SCRIPTS, env=environment)
    assert done.returncode == 0, done.stderr
    noted = json.loads((SCRIPTS / "estimates.json").read_text(encoding="utf-8"))["qwen2.5-0.5b-instruct/qlora_ddp_ds"]
    assert float(done.stdout.splitlines()[-1]) == pytest.approx(noted, rel=0.1)


def test_every_row_without_a_note_has_an_estimate():
    noted = json.loads((SCRIPTS / "estimates.json").read_text(encoding="utf-8"))
    assert set(noted) == {f"{row['model']}/{row['mode']}" for row in TABLE if not row["memory"]}
