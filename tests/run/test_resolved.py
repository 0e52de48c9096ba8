"""One preflight: whatever flags, configuration and files refuse, every command that knows a run refuses."""

from __future__ import annotations

import pytest

from llmtune import SftArguments
from llmtune.cli.main import main
from llmtune.errors import LlmtuneError, UsageError
from llmtune.run.resolved import Run

COMMANDS = {
    "sft": ["sft"],
    "dry run": ["sft", "--dry_run", "true"],
    "check": ["check"],
    "plan": ["plan"],
    "launch": ["launch", "--slurm", "--dry_run", "--", "sft"],
}
REFUSED = {
    "dataset": (["--dataset", "nowhere.jsonl"], "nowhere.jsonl"),
    "model folder": (["--model_id_or_path", "./nowhere"], "nowhere"),
    "target modules": (["--lora_target_modules", "nowhere"], "nowhere"),
    "modules to save": (["--modules_to_save", "nowhere"], "nowhere"),
    "adapter": (["--peft_path", "nowhere"], "--peft_path nowhere"),
    "checkpoint": (["--resume_from_checkpoint", "nowhere"], "--resume_from_checkpoint nowhere"),
    "DeepSpeed file": (["--deepspeed_config_path", "nowhere.json"], "nowhere.json"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("reason", REFUSED)
def test_every_command_refuses_what_the_run_would_refuse(command, reason, tmp_path, monkeypatch, capsys):
    if (command, reason) == ("launch", "checkpoint"):
        return  # the checkpoint is the cluster's
    monkeypatch.chdir(tmp_path)
    flags, named = REFUSED[reason]
    words = ["--model_type", "llmtune-tiny", *([] if reason == "dataset" else ["--dataset", "tiny-qa#20"]), *flags]
    assert main([*COMMANDS[command], *words]) != 0
    output = capsys.readouterr()
    assert named in output.err
    assert not (tmp_path / "output").exists(), "nothing was started"


def test_offline_collects_what_is_missing_where_a_run_would_stop(monkeypatch):
    args = SftArguments(model_type="llmtune-tiny", dataset=["tiny-qa#20"], quantization_bit=4, report_to=["wandb"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    lacks = Run.resolve(args, offline=True).lacks
    assert [line.split(" needs ")[1].split(".")[0] for line in lacks] == ["bitsandbytes", "wandb"]
    with pytest.raises(LlmtuneError, match="bitsandbytes"):
        Run.resolve(args)


def test_processes_that_will_be_started_count_in_the_step_size(tmp_path):
    """`check --nproc 2` and the dry run of a resumed run compared the step size of one process."""
    from llmtune import sft

    settings = {"model_type": "llmtune-tiny", "dataset": ["tiny-qa#20"], "batch_size": 2, "max_steps": 2,
                "output_dir": str(tmp_path), "save_steps": 1, "eval_strategy": "no"}  # fmt: skip
    run = sft(SftArguments(**settings, gradient_accumulation_steps=2)).output_dir
    resumed = settings | {"resume_from_checkpoint": str(run), "max_steps": 4}
    assert Run.resolve(SftArguments(**resumed, gradient_accumulation_steps=1, nproc=2), offline=True).resume is not None
    with pytest.raises(LlmtuneError, match="step"):
        Run.resolve(SftArguments(**resumed, gradient_accumulation_steps=2, nproc=2), offline=True)


def test_a_start_in_python_cannot_have_several_processes():
    run = Run.resolve(SftArguments(model_type="llmtune-tiny", dataset=["tiny-qa#20"], nproc=2))
    with pytest.raises(UsageError, match="torchrun"):
        run.check_start()
