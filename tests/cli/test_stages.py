"""The stages as commands: spellings and flags of other tools mean what they meant there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmtune.arguments.parser import parse
from llmtune.arguments.stages import STAGES, stage_arguments
from llmtune.cli.main import main
from llmtune.cli.stages import COMMANDS, command_arguments, spelled
from llmtune.errors import UnknownKeyError, UsageError

TINY = ["--model_type", "llmtune-tiny"]


OF_STAGES: list[tuple[str, list[str], dict[str, Any]]] = [
    ("dpo", ["--share_prompt"], {"share_prompt": "true"}),
    ("dpo", ["--pref_beta", "0.3"], {"beta": 0.3}),
    ("dpo", ["--orpo_beta", "0.3"], {"beta": 0.3}),
    ("dpo", ["--pref_loss", "simpo", "--simpo_gamma", "0.5"], {"loss": ["simpo"], "gamma": 0.5}),
    ("dpo", ["--pref_ftx", "0.1"], {"sft_weight": 0.1}),
    ("dpo", ["--rpo_alpha", "0.1"], {"sft_weight": 0.1}),
    ("dpo", ["--dpo_label_smoothing", "0.1"], {"label_smoothing": 0.1}),
    ("dpo", ["--loss_type", "cpo", "--cpo_alpha", "0"], {"loss": ["cpo"], "alpha": 0.0}),
    ("dpo", ["--loss_type", "sigmoid", "sft", "--loss_weights", "1", "0.2"], {"loss": ["sigmoid*1", "sft*0.2"]}),
    ("dpo", ["--ld_alpha", "0.5"], {"ld_alpha": 0.5}),
    ("dpo", ["--ref_adapters", "a"], {"reference": "a"}),
    ("dpo", ["--ref_model", "b"], {"reference": "b"}),
    ("dpo", ["--ref_model_name_or_path", "c"], {"reference": "c"}),
    ("dpo", ["--loss_type", "discopop", "--discopop_tau", "0.1"], {"tau": 0.1}),
    ("dpo", ["--sft_model_path", "/m"], {"model_id_or_path": "/m"}),
    ("kto", ["--kto_rejected_weight", "2"], {"undesirable_weight": 2.0}),
    ("dpo", ["--max_source_length", "100", "--max_target_length", "28"], {"max_length": 128}),
    ("dpo", ["--precompute_ref_log_probs", "true", "--max_prompt_length", "9"], {}),
    ("kto", ["--kto_chosen_weight", "2", "--undesirable_weight", "3"],
     {"desirable_weight": 2.0, "undesirable_weight": 3.0}),
    ("rm", ["--center_rewards_coefficient", "0.01"], {"centring": 0.01}),
    ("pt", ["--block_size", "512"], {"max_length": 512}),
    ("grpo", ["--max_completion_length", "32", "--max_prompt_length", "9"], {"max_new_tokens": 32, "max_length": 41}),
    ("grpo", ["--reward_funcs", "format", "--reward_weights", "1", "0.5"], {"rewards": ["accuracy*1", "format*0.5"]}),
    ("grpo", ["--num_generations", "4", "--steps_per_generation", "8"], {"num_generations": 4, "num_mini_batches": 2}),
    ("grpo", ["--loss_type", "dapo", "--epsilon_high", "0.3"], {"loss": ["dapo"], "epsilon_high": 0.3}),
    ("grpo", ["--scale_rewards", "batch"], {"advantage": "group_batch"}),
    ("grpo", ["--scale_rewards", "none"], {"advantage": "group_mean"}),
    ("grpo", ["--importance_sampling_level", "sequence"], {"loss": ["gspo"]}),
    ("grpo", ["--advantage_estimator", "reinforce_plus_plus"], {"loss": ["reinforce++"]}),
    ("grpo", ["--dynamic_sample", "true", "--max_resample_times", "5"], {"resample_ties": True, "max_resample": 5}),
    ("grpo", ["--overlong_filter", "true"], {"mask_cut": True}),
    ("grpo", ["--mask_truncated_completions", "true"], {"mask_cut": True}),
    ("grpo", ["--use_vllm", "false", "--log_completions", "true"], {"rollout_engine": "llmtune"}),
    ("ppo", ["--init_kl_coef", "0.2", "--adap_kl_ctrl", "True"], {"beta": 0.2, "adaptive_kl": True}),
    ("ppo", ["--early_stopping", "True", "--target_kl", "0.2"], {"early_stopping": True, "target_kl": 0.2}),
    ("ppo", ["--reward_baseline", "0.5", "--ppo_epochs", "2"], {"reward_baseline": 0.5, "num_iterations": 2}),
    ("ppo", ["--reward_model_path", "/rm"], {"rewards": ["accuracy", "rm:/rm"]}),
    ("ppo", ["--max_source_length", "100", "--max_target_length", "28"], {"max_length": 128, "max_new_tokens": 28}),
    ("ppo", ["--cliprange", "0.1", "--cliprange_value", "0.3"], {"epsilon": 0.1, "value_clip": 0.3}),
    *((stage, ["--per_device_train_batch_size", "4"], {"batch_size": 4}) for stage in STAGES),
]  # fmt: skip


NEEDED = {"grpo": ["--rewards", "accuracy"], "ppo": ["--rewards", "accuracy"]}
"""Flags that a stage does not do without."""


def parsed(stage: str, *words: str) -> Any:
    return parse(command_arguments(stage), [*TINY, *NEEDED.get(stage, []), *words], command=stage)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["orpo", "--beta", "1"], ("dpo", ["--loss", "orpo", "--beta", "1"])),
        (["ipo"], ("dpo", ["--loss", "ipo"])),
        (["rloo", "--seed", "1"], ("grpo", ["--loss", "rloo", "--seed", "1"])),
        (["rlhf", "--rlhf_type", "kto", "--seed", "1"], ("kto", ["--seed", "1"])),
        (["rlhf", "--rlhf_type=simpo"], ("dpo", ["--loss", "simpo"])),
        (["train", "--seed", "1", "--stage", "rm"], ("rm", ["--seed", "1"])),
        (["train", "--stage", "sft"], ("sft", [])),
    ],
)
def test_spellings_of_other_tools_are_commands(words, expected):
    assert spelled(words[0], words[1:]) == expected


def test_a_spelling_without_its_stage_is_refused():
    with pytest.raises(UsageError, match=r"needs --rlhf_type with the stage: .*kto.*simpo"):
        spelled("rlhf", ["--seed", "1"])
    with pytest.raises(UnknownKeyError, match=r"no stage 'dop'. Did you mean 'dpo'"):
        spelled("train", ["--stage", "dop"])


@pytest.mark.parametrize("name", ["orpo", "simpo", "cpo", "ipo"])
def test_a_spelling_runs_dry(name, capsys):
    assert main([name, *TINY, "--dataset", "tiny-pairs", "--dry_run", "true"]) == 0
    out = capsys.readouterr().out
    assert "Dry run: all flags are valid." in out
    assert f"{name} (" in next(line for line in out.splitlines() if line.startswith("loss "))


@pytest.mark.parametrize(("stage", "words", "expected"), OF_STAGES)
def test_flags_of_other_tools_are_taken(stage, words, expected):
    found = parsed(stage, *words)
    assert {name: getattr(found, name) for name in expected} == expected


def test_flags_that_do_not_go_together_are_refused():
    with pytest.raises(UsageError, match="has 1 weights for 2 losses"):
        parsed("dpo", "--loss", "sigmoid", "sft", "--loss_weights", "1")
    with pytest.raises(UsageError, match="llmtune kto"):
        parsed("dpo", "--pref_loss", "kto_pair")


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_has_help_that_names_it_and_default_rates_for_each_tuner(stage, capsys):
    with pytest.raises(SystemExit):
        COMMANDS[stage].run(["--help"])
    out = capsys.readouterr().out
    assert f"llmtune {stage} --model_type llmtune-tiny" in out
    rates = stage_arguments(stage).LEARNING_RATES
    assert set(rates) == {"lora", "full", "adalora", "ia3", "vera"}
    assert rates["full"] < rates["lora"]


@pytest.mark.parametrize("stage", STAGES)
def test_the_name_of_the_stage_as_a_flag_is_taken_and_another_refused(stage, capsys):
    words = [*TINY, *NEEDED.get(stage, []), "--dry_run", "true", "--dataset", DATA[stage]]
    assert COMMANDS[stage].run([*words, "--stage", stage]) == 0
    for other in set(STAGES) - {stage}:
        assert main([stage, *words, "--stage", other]) == 2
        assert f"Call llmtune {other}" in capsys.readouterr().err


DATA = {
    "pt": "tiny-text", "sft": "tiny-qa", "rm": "tiny-pairs", "dpo": "tiny-pairs", "kto": "tiny-labels",
    "grpo": "tiny-sums", "ppo": "tiny-sums",
}  # fmt: skip


@pytest.mark.medium
@pytest.mark.parametrize("stage", STAGES)
def test_check_and_plan_know_the_stage(stage, capsys):
    words = [*TINY, *NEEDED.get(stage, []), "--dataset", f"{DATA[stage]}#20"]
    assert main(["check", stage, *words]) == 0
    shown = capsys.readouterr().out
    assert ("reward accuracy" if stage in NEEDED else "trainable tokens") in shown
    assert main(["plan", "--stage", stage, *words]) == 0
    planned = capsys.readouterr().out
    assert "fits" in planned
    assert ("reference pass" in planned) == (stage in ("dpo", "kto"))
    assert ("logits and loss" in planned) == (stage != "rm")
    assert ("KV cache" in planned) == (stage in NEEDED)
    assert ("critic" in planned) == (stage == "ppo")


@pytest.mark.medium
def test_a_loss_of_the_users_own_is_trained_by_being_registered(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from llmtune.losses.info import register_loss\n"
        "from llmtune.losses.terms import Terms\n\n"
        "@register_loss('mine', needs_reference=False)\n"
        "def mine(chosen, rejected, options):\n"
        "    return Terms((rejected.mean - chosen.mean + 7.0).square())\n"
    )
    words = [*TINY, "--dataset", "tiny-pairs#12", "--max_steps", "2", "--output_dir", str(tmp_path / "out")]
    words += ["--custom_register_path", str(file), "--loss", "mine", "--logging_steps", "1", "--report_to", "none"]
    assert main(["dpo", *words]) == 0
    log = next((tmp_path / "out").rglob("logging.jsonl"))
    first = json.loads(log.read_text().splitlines()[0])
    assert 10 < first["loss"] < 200
