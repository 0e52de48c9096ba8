"""Flags of other tools for online stages: trl's GRPO, RLOO and former PPO, ms-swift's, MedicalGPT's."""

from __future__ import annotations

from collections.abc import Callable

from llmtune.errors import UsageError

Tokens = list[tuple[str, list[str]]]
Converter = Callable[[list[str]], Tokens]

RENAMED = {
    "max_completion_length": "max_new_tokens",
    "response_length": "max_new_tokens",
    "reward_funcs": "rewards",
    "epsilon_low": "epsilon",
    "cliprange": "epsilon",
    "cliprange_value": "value_clip",
    "clip_epsilon": "epsilon",
    "ppo_epochs": "num_iterations",
    "num_ppo_epochs": "num_iterations",
    "init_kl_coef": "beta",
    "kl_coef": "beta",
    "adap_kl_ctrl": "adaptive_kl",
    "target": "kl_target",
    "horizon": "kl_horizon",
    "gae_lambda": "lam",
    "mask_truncated_completions": "mask_cut",
    "overlong_filter": "mask_cut",
    "dynamic_sample": "resample_ties",
    "max_resample_times": "max_resample",
    "vllm_server_base_url": "rollout_url",
    "value_model_path": "critic_path",
    "critic_model_path": "critic_path",
}
NO_EFFECT = {
    "log_completions": "a few responses of each step are in answers.jsonl of the run folder",
    "vf_coef": "the critic has an optimizer of its own: --critic_learning_rate",
    "mini_batch_size": "a step holds batch_size x gradient_accumulation_steps responses",
    "whiten_rewards": "advantages are whitened",
    "disable_dropout": "dropout is off unless a flag turns it on",
    "ds3_gather_for_generation": "sharded weights do not generate: --rollout_url",
    "vllm_mode": "--rollout_url asks a server, --rollout_engine vllm generates in this process",
    "reward_model_device": "reward models compute where the model does",
    "num_sample_generations": "a few responses of each step are in answers.jsonl of the run folder",
}


def _is(values: list[str]) -> str:
    return (values or ["true"])[0].lower()


def _scale_rewards(values: list[str]) -> Tokens:
    found = {"true": "", "group": "", "batch": "group_batch", "false": "group_mean", "none": "group_mean"}
    if _is(values) not in found:
        raise ValueError("expected group, batch, none, true or false")
    return [("advantage", [found[_is(values)]])] if found[_is(values)] else []


def _importance(values: list[str]) -> Tokens:
    if values == ["sequence"]:
        return [("loss", ["gspo"])]
    if values != ["token"]:
        raise ValueError("expected token or sequence; sequence_token is not there")
    return []


def _estimator(values: list[str]) -> Tokens:
    found = {"grpo": "grpo", "rloo": "rloo", "reinforce_plus_plus": "reinforce++"}
    if _is(values) not in found:
        raise ValueError("expected grpo, rloo or reinforce_plus_plus")
    return [("loss", [found[_is(values)]])]


def _reward_model(values: list[str]) -> Tokens:
    return [("rewards", [f"rm:{value}" for value in values])]


def _use_vllm(values: list[str]) -> Tokens:
    return [("rollout_engine", ["vllm"])] if _is(values) in ("true", "1", "yes") else []


CONVERTED: dict[str, Converter] = {
    "scale_rewards": _scale_rewards,
    "importance_sampling_level": _importance,
    "advantage_estimator": _estimator,
    "use_vllm": _use_vllm,
    **dict.fromkeys(("reward_model_path", "reward_model_name_or_path", "reward_model"), _reward_model),
}
JOINED = ("reward_weights", "steps_per_generation", "max_prompt_length")


def join_online(tokens: Tokens) -> Tokens:
    """Join flags that mean something of ours together only.

    trl's and ms-swift's list of weights with the list of rewards; micro-batches per generation with those per step;
    the limits of prompt and response.

    Raises:
        UsageError: There are more or fewer weights than rewards; the micro-batches are no whole steps.
    """
    return _with_length(_with_mini_batches(_with_weights(tokens)))


def _with_weights(tokens: Tokens) -> Tokens:
    weights = dict(tokens).get("reward_weights")
    if weights is None:
        return tokens
    rewards = [value for flag, values in tokens if flag == "rewards" for value in values]
    if len(weights) != len(rewards):
        raise UsageError(
            f"--reward_weights has {len(weights)} weights for {len(rewards)} rewards. Write --rewards key*weight."
        )
    joined = [f"{reward}*{weight}" for reward, weight in zip(rewards, weights, strict=True)]
    return [token for token in tokens if token[0] not in ("rewards", "reward_weights")] + [("rewards", joined)]


def _with_mini_batches(tokens: Tokens) -> Tokens:
    given = dict(tokens)
    if "steps_per_generation" not in given:
        return tokens
    count = int((given["steps_per_generation"] or ["1"])[0])
    per_step = int((given.get("gradient_accumulation_steps") or ["4"])[0])
    if count % per_step:
        raise UsageError(
            f"--steps_per_generation {count} counts micro-batches, which are no whole steps of "
            f"--gradient_accumulation_steps {per_step}. Write --num_mini_batches, in optimizer steps."
        )
    rest = [token for token in tokens if token[0] != "steps_per_generation"]
    return [*rest, ("num_mini_batches", [str(count // per_step)])]


def _with_length(tokens: Tokens) -> Tokens:
    given = dict(tokens)
    if "max_prompt_length" not in given:
        return tokens
    rest = [token for token in tokens if token[0] != "max_prompt_length"]
    if "max_length" in given:
        return rest
    total = int(given["max_prompt_length"][0]) + int((given.get("max_new_tokens") or ["512"])[0])
    return [*rest, ("max_length", [str(total)])]
