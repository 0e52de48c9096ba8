"""The files of `llmtune launch`: as reviewed, and understood by what reads them."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from llmtune.arguments.parser import parse
from llmtune.arguments.stage import SftArguments

FOLDER = Path(__file__).parents[1] / "golden"
NAMES = ["lora.sbatch", "full.sbatch", "lora.sky.yaml", "full.sky.yaml", "lora.ray.py", "full.ray.py"]
OF_SHELL = {
    "SLURM_JOB_ID": "77",
    "SKYPILOT_TASK_ID": "sky-77",
    "SKYPILOT_NUM_GPUS_PER_NODE": "8",
    "PATH": "/usr/bin:/bin",
}


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("launch_texts", FOLDER / "launch_texts.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def golden(name: str) -> str:
    return (FOLDER / "launch" / name).read_text(encoding="utf-8")


def test_each_job_has_a_file(generator):
    assert list(generator.JOBS) == NAMES
    assert {file.name for file in (FOLDER / "launch").iterdir()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_job_files_equal_the_golden_ones(name, generator):
    assert generator.text_of(name) == golden(name)


def shell_of(name: str) -> str:
    return golden(name) if name.endswith("sbatch") else yaml.safe_load(golden(name))["run"]


def sft_words(shell: str) -> list[str]:
    """What bash makes of the array."""
    array = shell[shell.index("sft=(\n") : shell.index("\n)\n") + 3]
    done = subprocess.run(["bash", "-euc", f"{array}printf '%s\\0' \"${{sft[@]}}\""], env=OF_SHELL, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().split("\0")[:-1]


@pytest.mark.parametrize("name", NAMES[:4])
def test_job_scripts_are_valid_bash(name):
    done = subprocess.run(["bash", "-n"], input=shell_of(name), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("name", "nproc", "output_dir"),
    [
        ("lora.sbatch", 8, "out put/slurm-77"),
        ("full.sbatch", 4, "output"),
        ("lora.sky.yaml", 8, "/llmtune-output/sky-77"),
        ("full.sky.yaml", 8, "output"),
    ],
)
def test_the_run_is_the_one_asked_for(name, nproc, output_dir, generator):
    """Quoted through YAML and bash: the same arguments, with what the launcher adds."""
    program, command, *words = sft_words(shell_of(name))
    assert (program, command) == ("llmtune", "sft")
    arguments, asked = (parse(SftArguments, given, command="sft") for given in (words, generator.JOBS[name][1]))
    assert (arguments.nproc, arguments.output_dir) == (nproc, output_dir)
    assert arguments.resume_from_checkpoint == (None if name == "full.sbatch" else "last")
    arguments.nproc, arguments.output_dir = asked.nproc, asked.output_dir
    arguments.resume_from_checkpoint = asked.resume_from_checkpoint
    assert arguments == asked


def test_sbatch_asks_for_the_machines():
    asked = [line.removeprefix("#SBATCH ") for line in golden("lora.sbatch").splitlines() if "#SBATCH" in line]
    for line in ("--nodes=2", "--gpus-per-node=a100:8", "--mem=500G", "--requeue", "--signal=B:USR1@120"):
        assert line in asked
    assert "scontrol requeue" in golden("lora.sbatch")
    assert "scontrol requeue" not in golden("full.sbatch")  # its checkpoints hold no optimizer


def test_sky_has_the_fields_of_a_task():
    task = yaml.safe_load(golden("lora.sky.yaml"))
    assert list(task) == ["name", "num_nodes", "workdir", "resources", "secrets", "file_mounts", "setup", "run"]
    assert task["resources"] == {
        "accelerators": "A100:8",
        "cpus": "32+",
        "memory": "256+",
        "infra": "aws/us-east-1",
        "use_spot": True,
    }
    assert task["secrets"] == {"HF_TOKEN": None, "WANDB_API_KEY": None}
    assert task["file_mounts"] == {"/llmtune-output": {"source": "s3://answers", "mode": "MOUNT_CACHED"}}
    for name in ("SKYPILOT_NODE_IPS", "SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES", "SKYPILOT_NUM_GPUS_PER_NODE"):
        assert name in task["run"]


def test_sky_tells_each_machine_its_place(tmp_path):
    program = tmp_path / "llmtune"
    program.write_text('#!/bin/bash\necho "$NNODES $NODE_RANK $MASTER_ADDR $MASTER_PORT $1 ${@: -1}"\n')
    program.chmod(0o755)
    machine = {"SKYPILOT_NODE_IPS": "10.0.0.5\n10.0.0.6", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": "2"}
    environment = OF_SHELL | machine | {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", shell_of("lora.sky.yaml")], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("2 1 10.0.0.5 29500 sft last\n", "")


@pytest.mark.parametrize("name", NAMES[4:])
def test_ray_is_python_with_the_same_flags(name, generator):
    tree = ast.parse(golden(name))
    compile(tree, name, "exec")
    values = {
        statement.targets[0].id: ast.literal_eval(statement.value)
        for statement in tree.body
        if isinstance(statement, ast.Assign)
    }
    settings, words = generator.JOBS[name]
    arguments, asked = (parse(SftArguments, given, command="sft") for given in (values["SFT"], words))
    arguments.output_dir = values["OUTPUT_DIR"]
    assert arguments == asked
    assert values["VARIABLES"] == settings.get("env", [])


def test_no_value_of_the_environment_is_written(generator, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_hidden")
    monkeypatch.setenv("WANDB_API_KEY", "hidden too")
    assert all("hidden" not in generator.text_of(name) for name in NAMES)
