"""The flags of trl, ms-swift and MedicalGPT for grpo and ppo: a row for each alias of aliases_online.py."""

from __future__ import annotations

from typing import Any

import pytest

from llmtune.arguments.aliases_online import CONVERTED, JOINED, NO_EFFECT, RENAMED
from llmtune.arguments.parser import parse
from llmtune.cli.stages import command_arguments
from llmtune.errors import UsageError

TINY = ["--model_type", "llmtune-tiny", "--dataset", "tiny-qa"]
REWARDED = {"--reward_funcs", "--reward_model", "--reward_model_path", "--reward_model_name_or_path"}
OF_ONLINE: list[tuple[str, str, dict[str, Any]]] = [
    # trl's GRPOConfig
    ("grpo", "--reward_funcs accuracy format", {"rewards": ["accuracy", "format"]}),
    ("grpo", "--reward_funcs accuracy format --reward_weights 1 0.2", {"rewards": ["accuracy*1", "format*0.2"]}),
    ("grpo", "--max_completion_length 64", {"max_new_tokens": 64}),
    ("grpo", "--max_prompt_length 100 --max_completion_length 28", {"max_length": 128, "max_new_tokens": 28}),
    ("grpo", "--max_prompt_length 100", {"max_length": 612}),
    ("grpo", "--max_prompt_length 100 --max_length 900", {"max_length": 900}),
    ("grpo", "--epsilon_low 0.1 --epsilon_high 0.3", {"epsilon": 0.1, "epsilon_high": 0.3}),
    ("grpo", "--loss_type dr_grpo", {"loss": ["dr_grpo"]}),
    ("grpo", "--scale_rewards true", {"advantage": None}),
    ("grpo", "--scale_rewards batch", {"advantage": "group_batch"}),
    ("grpo", "--scale_rewards false", {"advantage": "group_mean"}),
    ("grpo", "--importance_sampling_level sequence", {"loss": ["gspo"]}),
    ("grpo", "--importance_sampling_level token", {"loss_key": "grpo"}),
    ("grpo", "--mask_truncated_completions true", {"mask_cut": True}),
    ("grpo", "--use_vllm false --vllm_mode colocate", {"rollout_engine": "llmtune"}),
    ("grpo", "--use_vllm true", {"rollout_engine": "vllm"}),
    ("grpo", "--vllm_server_base_url http://h:8000", {"rollout_url": "http://h:8000"}),
    ("grpo", "--steps_per_generation 8 --gradient_accumulation_steps 2", {"num_mini_batches": 4}),
    ("grpo", "--log_completions true --ds3_gather_for_generation true --disable_dropout true", {}),
    # ms-swift
    ("grpo", "--advantage_estimator rloo", {"loss": ["rloo"]}),
    ("grpo", "--advantage_estimator reinforce_plus_plus", {"loss": ["reinforce++"]}),
    ("grpo", "--overlong_filter true", {"mask_cut": True}),
    (
        "grpo",
        "--dynamic_sample true --max_resample_times 5",
        {"resample_ties": True, "max_resample": 5},
    ),
    ("grpo", "--reward_model org/reward", {"rewards": ["rm:org/reward"]}),
    # trl's former PPOConfig
    ("ppo", "--reward_model_path /rm --response_length 53", {"rewards": ["rm:/rm"], "max_new_tokens": 53}),
    ("ppo", "--num_ppo_epochs 2 --kl_coef 0.1", {"num_iterations": 2, "beta": 0.1}),
    ("ppo", "--cliprange 0.1 --cliprange_value 0.3", {"epsilon": 0.1, "value_clip": 0.3}),
    ("ppo", "--gae_lambda 0.9 --vf_coef 0.1 --whiten_rewards false --num_sample_generations 0", {"lam": 0.9}),
    ("ppo", "--adap_kl_ctrl true --target 3 --horizon 500", {"kl_target": 3.0, "kl_horizon": 500}),
    ("ppo", "--ppo_epochs 3 --clip_epsilon 0.1", {"num_iterations": 3, "epsilon": 0.1}),
    ("ppo", "--value_model_path /v", {"critic_path": "/v"}),
    ("ppo", "--critic_model_path /v", {"critic_path": "/v"}),
    # MedicalGPT's ppo_training.py
    (
        "ppo",
        "--reward_model_name_or_path /rm --reward_model_device cpu --batch_size 8 --mini_batch_size 1 "
        "--max_source_length 100 --max_target_length 28 --init_kl_coef 0.2 --adap_kl_ctrl False",
        {"rewards": ["rm:/rm"], "max_length": 128, "max_new_tokens": 28, "beta": 0.2, "adaptive_kl": False},
    ),
    ("ppo", "--sft_model_path /m --reward_model_path /rm", {"model_id_or_path": "/m"}),
]


def parsed(stage: str, line: str) -> Any:
    words = line.split()
    rewards = [] if REWARDED.intersection(words) else ["--rewards", "accuracy"]
    return parse(command_arguments(stage), [*TINY, *rewards, *words], command=stage)


@pytest.mark.parametrize(("stage", "line", "expected"), OF_ONLINE)
def test_each_flag_of_another_tool_is_taken(stage, line, expected):
    found = parsed(stage, line)
    assert {name: getattr(found, name) for name in expected} == expected


def test_the_table_has_every_flag():
    flags = {word[2:] for _, line, _ in OF_ONLINE for word in line.split() if word.startswith("--")}
    assert {*RENAMED, *NO_EFFECT, *CONVERTED, *JOINED} <= flags


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--reward_funcs accuracy format --reward_weights 1", "1 weights for 2 rewards"),
        ("--steps_per_generation 3", "no whole steps of --gradient_accumulation_steps 4"),
        ("--importance_sampling_level sequence_token", "expected token or sequence"),
        ("--advantage_estimator gae", "expected grpo, rloo or reinforce_plus_plus"),
        ("--scale_rewards perhaps", "expected group, batch, none, true or false"),
    ],
)
def test_a_value_without_a_translation_is_refused(line, said):
    with pytest.raises(UsageError, match=said):
        parsed("grpo", line)
